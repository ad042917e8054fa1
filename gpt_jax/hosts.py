"""The processes that make one run together: how they meet, which of them writes, and when all stop.

A run of one process is the usual case: then nothing here waits or asks anybody.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import signal
import sys
import time
from types import FrameType
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils
import numpy as np

from gpt_jax.types import UserError

GRACE = 3
"""Seconds that a process which fails leaves to others that fail alike, to say so: without it they could not."""


def join(address: str | None = None, processes: int | None = None, process: int | None = None) -> None:
  """Joins the other processes of the run, before anything else is asked of JAX.

  Without arguments JAX finds the others by what a TPU slice, Slurm, Open MPI or Kubernetes put into the environment;
  else `address` is HOST:PORT of process 0, and this is number `process` of `processes`.

  Raises:
    UserError: an address or number that can not be, or an environment that JAX does not know.
  """
  if address is not None:
    host, _, port = address.rpartition(':')
    if not host or not port.isdecimal():
      raise UserError(f'--coordinator_address={address} must be HOST:PORT of process 0')
    if processes is None or process is None or not 0 <= process < processes:
      raise UserError(f'--process_id={process} must be from 0 to below --num_processes={processes}')
  try:
    jax.distributed.initialize(address, processes, process)
  except (RuntimeError, ValueError, KeyError) as error:
    reason = (str(error).splitlines() or [''])[0]
    raise UserError(
      f'this process can not join the others ({reason}); with no cluster that JAX knows, give --coordinator_address, '
      '--num_processes and --process_id'
    ) from error
  signal.signal(signal.SIGINT, _pass_on)


def _pass_on(number: int, frame: FrameType | None) -> None:
  """Makes of Ctrl-C a SIGTERM, which JAX takes to all; a second one acts as ever."""
  del frame
  signal.signal(number, signal.default_int_handler)
  os.kill(os.getpid(), signal.SIGTERM)


def leads() -> bool:
  """Whether this process writes the files of a run and speaks for it: the only one, or the first of several.

  It asks JAX for its devices only where there are several, so that who merely starts runs can call it.
  """
  return not jax.distributed.is_initialized() or jax.process_index() == 0


def named() -> str:
  """Which process this is, in front of what it has to say: nothing, if it is the only one."""
  return f'process {jax.process_index()} of {jax.process_count()}: ' if jax.distributed.is_initialized() else ''


@contextlib.contextmanager
def one_speaks() -> Iterator[None]:
  """Within, output and progress are shown by the process that leads. An exception is shown by whoever meets it."""
  if leads():
    yield
    return
  with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
    yield


def fail(code: int) -> NoReturn:
  """Ends this process for an error that is said, and with it the run.

  An ordinary exit waits for the other processes, which may wait for this one. So it breaks off: their next exchange
  fails where JAX notices at once, as on CPU, or when this one's heartbeat has been missed, after 100 seconds.
  """
  if not jax.distributed.is_initialized():
    sys.exit(code)
  if leads():
    time.sleep(GRACE)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def written(path: pathlib.Path) -> pathlib.Path:
  """What to open in order to write a file of a run: the file, or where this process does not lead, nothing."""
  return path if leads() else pathlib.Path(os.devnull)


def meet(where: str) -> None:
  """Returns when all processes are here: what all read before is as it was, though one writes it next."""
  if jax.distributed.is_initialized():
    multihost_utils.sync_global_devices(where)


def agreed(number: int) -> int:
  """The number that the process which leads found: storage may show others an older state."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(number))) if jax.distributed.is_initialized() else number


def least(number: int) -> int:
  """The least of the numbers that the processes give, all of which must ask."""
  if not jax.distributed.is_initialized():
    return int(number)
  return int(multihost_utils.process_allgather(np.int32(number)).min())


def fetched(tree: Any) -> Any:
  """The values of arrays as numpy's, also of those that lie in part on other machines; all processes must ask."""

  def near(x: Any) -> Any:
    spread = isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
    return multihost_utils.process_allgather(x, tiled=True) if spread else x

  return jax.device_get(jax.tree.map(near, tree))


def stop_after(step: int) -> int | None:
  """The signal by which to end after this step, which all processes must ask of every step; None: go on.

  One SIGTERM, wherever it arrives, stops all after the same step: JAX tells the others, and takes a step that nobody
  is past.
  """
  stops = jax.distributed.is_initialized() and multihost_utils.reached_preemption_sync_point(step)
  return signal.SIGTERM if stops else None
