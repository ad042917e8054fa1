"""What a run says: a bar, metrics.jsonl and TensorBoard events."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
import math
import os
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from gpt_jax import hosts
from gpt_jax.training.loop import TrainState
from gpt_jax.training.workdir import write_whole
from gpt_jax.types import Diverged, Metrics, UserError


def read_lines(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """The lines of metrics.jsonl; a last line torn by a kill is left out."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return []
  texts = path.read_text().split('\n')
  try:
    return [json.loads(text) for text in texts[:-1]]
  except ValueError as error:
    raise UserError(f'{path} has a line that is no JSON ({error}): mend or remove it') from None


def keep_lines(workdir: str | os.PathLike, step: int) -> list[dict[str, Any]]:
  """Drops what metrics.jsonl says of steps after `step`, which will run again; returns what is left."""
  lines = [line for line in read_lines(workdir) if line['step'] <= step]
  write_whole(pathlib.Path(workdir) / 'metrics.jsonl', ''.join(json.dumps(line) + '\n' for line in lines))
  return lines


class Log:
  """The hook that reports a run.

  Each call holds a step's metrics and fetches those of the step before, so the device always has work. A loss or
  gradient norm that is not finite ends the run. Lines are written for step 1, every `log_every` and the last.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    start: int,
    num_steps: int,
    log_every: int,
    learning_rates: np.ndarray,
    tokens_per_step: Callable[[int], int],
    describe_batch: Callable[[int], str],
  ):
    from tensorboardX import SummaryWriter  # loads torch where that is installed

    self.lines = keep_lines(workdir, start)
    self._file = hosts.written(pathlib.Path(workdir) / 'metrics.jsonl').open('a')
    events = str(pathlib.Path(workdir) / 'tensorboard')
    self._events = SummaryWriter(events, purge_step=start + 1, write_to_disk=hosts.leads())
    interval = 0.2 if sys.stderr.isatty() else 30
    self._bar = tqdm(total=num_steps, initial=start, unit='step', dynamic_ncols=True, mininterval=interval)
    self._last, self._log_every = num_steps, log_every
    self._learning_rates, self._tokens_per_step, self._describe_batch = learning_rates, tokens_per_step, describe_batch
    self._held: tuple[int, Metrics] | None = None
    self._tokens = sum(tokens_per_step(index) for index in range(start))
    # Seconds of training, without pauses, go on from an earlier process's.
    self._began = time.perf_counter() - next((line['seconds'] for line in self.lines[::-1] if 'seconds' in line), 0.0)
    self._mark: tuple[int, float] | None = None

  def __call__(self, index: int, state: TrainState, metrics: Metrics) -> None:
    del state
    self.flush()
    self._held = (index, metrics)

  def flush(self) -> None:
    """Waits for the step whose metrics are held, and reports it."""
    if self._held is None:
      return
    (index, metrics), self._held = self._held, None
    sums = jax.device_get({name: (mean.total, mean.weight) for name, mean in metrics.items()})
    values = {name: float(total / weight) if weight else 0.0 for name, (total, weight) in sums.items()}
    seconds = time.perf_counter() - self._began
    for name in ('loss', 'grad_norm'):
      if not math.isfinite(values[name]):
        batch = self._describe_batch(index - 1)
        raise Diverged(
          f'{name} of step {index} is {values[name]}; its batch was {batch}; look at it, or lower the learning rate'
        )
    self._tokens += self._tokens_per_step(index - 1)
    self._bar.set_postfix_str(f'loss {values["loss"]:.4f}{self._speed(seconds)}', refresh=False)
    self._bar.update()
    if index in (1, self._last) or (self._log_every and index % self._log_every == 0):
      line = {'step': index, **values, 'learning_rate': float(self._learning_rates[index - 1]), 'tokens': self._tokens}
      if self._mark:
        line['tokens_per_second'] = (self._tokens - self._mark[0]) / (seconds - self._mark[1])
      self.write({**line, 'seconds': seconds})
      self._mark = (self._tokens, seconds)
    elif self._mark is None:  # the first step of a process compiles: not counted
      self._mark = (self._tokens, seconds)

  def _speed(self, seconds: float) -> str:
    if self._mark is None or seconds <= self._mark[1]:
      return ''
    return f', {(self._tokens - self._mark[0]) / (seconds - self._mark[1]):,.0f} tokens/s'

  def write(self, line: Mapping[str, float | int]) -> None:
    """Adds a line to metrics.jsonl and its values to TensorBoard; what is not finite is written as null."""
    plain = {name: value if math.isfinite(value) else None for name, value in line.items()}
    self.lines.append(plain)
    self._file.write(json.dumps(plain) + '\n')
    self._file.flush()
    for name, value in line.items():
      if name != 'step':
        self._events.add_scalar(name, value, line['step'])

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Reports all steps so far, and doesn't count the time within as training."""
    self.flush()
    before = time.perf_counter()
    try:
      yield
    finally:
      pause = time.perf_counter() - before
      self._began += pause
      self._bar.start_t += pause  # the bar's speed and time left are of training alone
      self._bar.last_print_t += pause

  def close(self) -> None:
    self._bar.close()
    self._file.close()
    self._events.close()
