"""What the machine does in a few chosen steps, and what was compiled: a trace to look at, and counts."""

from collections.abc import Iterator
import contextlib
import dataclasses
import pathlib

import jax
from tqdm import tqdm

from gpt_jax.training.loop import TrainState
from gpt_jax.types import Metrics


class Profile:
  """A hook that traces the `steps` from the first to the last of a pair into `folder`; None: none.

  TensorBoard's profiler reads the folder, Perfetto the perfetto_trace.json.gz in it. What evaluations and saves fall
  between the steps is in the trace too. The last of `num_steps` ends it, and whatever ends the run. Step 1, which
  compiles, is never traced.
  """

  def __init__(self, folder: pathlib.Path, steps: tuple[int, int] | None, num_steps: int):
    self._folder, self._tracing = folder, False
    self._first, last = steps or (0, 0)
    self._last = min(last, num_steps)

  def __call__(self, index: int, state: TrainState, metrics: Metrics) -> None:
    if index == self._first - 1:
      jax.block_until_ready((state, metrics))
      jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
      self._tracing = True
    elif index == self._last and self._tracing:
      jax.block_until_ready((state, metrics))
      self.close()

  def close(self) -> None:
    """Writes what was traced."""
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()
      tqdm.write(f'Traced steps from {self._first} to {self._last}: {self._folder}')


@dataclasses.dataclass
class Compilations:
  """Programs that were made ready, the seconds it took, and how many of them were found kept from before."""

  count: int = 0
  seconds: float = 0.0
  kept: int = 0

  def told(self) -> dict[str, int | float]:
    """As a run's result has it."""
    return {'programs': self.count, 'programs_kept': self.kept, 'compile_seconds': self.seconds}


@contextlib.contextmanager
def compilations() -> Iterator[Compilations]:
  """Counts what is compiled within."""
  found = Compilations()

  def took(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event == '/jax/core/compile/backend_compile_duration':
      found.count += 1
      found.seconds += duration_secs

  def happened(event: str, **kwargs: str | int) -> None:
    found.kept += event == '/jax/compilation_cache/cache_hits'

  jax.monitoring.register_event_duration_secs_listener(took)
  jax.monitoring.register_event_listener(happened)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_duration_listener(took)
    jax.monitoring.unregister_event_listener(happened)
