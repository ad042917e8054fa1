"""Runs an experiment as a user does: its main, by its flags, in this process or one of its own."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import importlib
import inspect
import io
import os
import pathlib
import socket
import subprocess
import sys
from types import ModuleType
from typing import Any
from unittest import mock

from absl import flags
from absl.testing import flagsaver
import jax
import pytest

ROOT = pathlib.Path(__file__).parents[2]
TINY = 'configs/pretrain/tiny.py'


@dataclasses.dataclass(frozen=True)
class Ended:
  code: int
  out: str
  err: str


_shelf: dict[str, list[flags.Flag]] = {}
"""The flags of experiments by the module that defines them, while they are not in use."""


def _shelve() -> None:
  for module, defined in flags.FLAGS.flags_by_module_dict().items():
    if module.startswith('experiments.'):
      _shelf.setdefault(module, []).extend(defined)
      for flag in list(defined):
        delattr(flags.FLAGS, flag.name)


def _imported(module: ModuleType) -> set[str]:
  """The modules of experiments that a module uses, and that those use."""
  used = [value for value in vars(module).values() if getattr(value, '__name__', '').startswith('experiments.')]
  return {inner.__name__ for inner in used}.union(*map(_imported, filter(inspect.ismodule, used)))


def load(name: str) -> ModuleType:
  """experiments.NAME as in a process of its own: of the flags of all experiments, those it uses."""
  _shelve()
  module = importlib.import_module(f'experiments.{name}')
  _shelve()
  for used in [name for name in _shelf if name == module.__name__ or name in _imported(module)]:
    for flag in _shelf.pop(used):
      flags.FLAGS[flag.name] = flag
      flags.FLAGS.register_flag_by_module(used, flag)
  return module


def call(capfd: pytest.CaptureFixture, name: str, *arguments: str, stdin: str = '', devices: int = 1) -> Ended:
  """The main of experiments.NAME in this process: no second for imports, and programs once compiled are kept.

  Its meshes are of the first `devices`: of more, steps and compilation take longer.
  """
  module = load(name)
  from experiments import command

  given, sys.stdin = sys.stdin, io.StringIO(stdin)
  found = jax.devices()
  argv, code, folder = sys.argv, 0, pathlib.Path.cwd()
  try:
    os.chdir(ROOT)
    sys.argv = [name, *arguments]
    with flagsaver.flagsaver(), mock.patch.object(jax, 'devices', lambda *_: found[:devices]):
      flags.FLAGS.unparse_flags()
      command.run(module.main)
  except SystemExit as ended:
    code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
  finally:
    sys.argv, sys.stdin = argv, given
    os.chdir(folder)
  out, err = capfd.readouterr()
  return Ended(code, out, err)


def command_line(name: str, arguments: Sequence[str], devices: int = 1) -> dict:
  """What subprocess needs to run experiments.NAME on so many CPU devices."""
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  # Compiled as quickly as in the tests' own process.
  level = '--xla_backend_optimization_level=0'
  environment['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={devices} {level}'
  return {'args': [sys.executable, '-m', f'experiments.{name}', *arguments], 'cwd': ROOT, 'env': environment}


def together(
  name: str, *arguments: str, processes: int, devices: int, last: Sequence[str] = ()
) -> list[subprocess.Popen]:
  """experiments.NAME in several processes that make one run, each with so many of its CPU devices.

  `last` are arguments of the last process alone.
  """
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  meeting = [f'--coordinator_address={address}', f'--num_processes={processes}']
  pipes: dict[str, Any] = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
  numbers = [[f'--process_id={number}'] for number in range(processes)]
  numbers[-1] += last
  lines = [command_line(name, [*arguments, *meeting, *number], devices) for number in numbers]
  return [subprocess.Popen(**line, **pipes) for line in lines]


def ended(processes: Sequence[subprocess.Popen]) -> list[Ended]:
  """What has become of processes when all have ended."""
  with ThreadPoolExecutor() as pool:  # a pipe that nobody reads would hold its process up
    said = list(pool.map(lambda process: process.communicate(timeout=300), processes))
  return [Ended(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def spawn(name: str, *arguments: str, devices: int = 1) -> Ended:
  """The main of experiments.NAME in a process of its own."""
  done = subprocess.run(
    **command_line(name, arguments, devices), capture_output=True, text=True, timeout=300, check=False
  )
  return Ended(done.returncode, done.stdout, done.stderr)
