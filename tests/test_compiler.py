"""What XLA is told reaches it: by the memory of a program, in a process of its own."""

import os
import subprocess
import sys

from gpt_jax import compiler

PROGRAM = """
import os

from gpt_jax import compiler

compiler.set_up()

import jax
import jax.numpy as jnp

from gpt_jax.models.attention import Strided
from gpt_jax.types import left_to_right

heads = [jnp.ones((1, 4096, 2, 16))] * 3
layout = left_to_right(jnp.zeros((1, 4096), int))
program = jax.jit(Strided(64, split=True)).lower(*heads, layout, layout).compile()
print(program.memory_analysis().temp_size_in_bytes, os.environ['XLA_FLAGS'])
"""


def run(tmp_path, flags: str) -> tuple[int, str]:
  environment = {**os.environ, 'XLA_FLAGS': flags, 'GPT_JAX_CACHE': str(tmp_path)}
  ended = subprocess.run([sys.executable, '-c', PROGRAM], env=environment, capture_output=True, text=True, check=True)
  size, said = ended.stdout.split(maxsplit=1)
  return int(size), said.strip()


def test_the_order_of_work_saves_memory_and_flags_of_ones_own_stay(tmp_path):
  ours, said = run(tmp_path, '--xla_cpu_enable_fast_min_max=true')
  assert said == f'--xla_cpu_enable_fast_min_max=true {compiler.SCHEDULE}=false'
  theirs, said = run(tmp_path, f'{compiler.SCHEDULE}=true')
  assert said == f'{compiler.SCHEDULE}=true'
  assert ours < 0.75 * theirs


def test_nothing_is_set_twice(monkeypatch, tmp_path):
  monkeypatch.setenv('XLA_FLAGS', '')
  monkeypatch.setenv('GPT_JAX_CACHE', str(tmp_path))
  monkeypatch.setattr('jax.config.update', lambda name, value: None)
  compiler.set_up()
  once = os.environ['XLA_FLAGS']
  compiler.set_up()
  assert os.environ['XLA_FLAGS'] == once == f'{compiler.SCHEDULE}=false'


def test_a_cache_folder_that_cannot_be_made_is_one_line(tmp_path):
  (tmp_path / 'file').touch()
  environment = {**os.environ, 'GPT_JAX_CACHE': str(tmp_path / 'file/cache')}
  command = [sys.executable, '-m', 'experiments.convert', '--source=here', '--target=there']
  ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
  assert ended.returncode == 2 and ended.stderr.count('\n') == 1, ended.stderr
  assert 'set GPT_JAX_CACHE to a folder that can be made' in ended.stderr
