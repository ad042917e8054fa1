"""Learning rates by step, and batch sizes by tokens."""

import bisect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax

from gpt_jax.names import choose
from gpt_jax.types import UserError


def _wsd(peak: float, config: Mapping[str, Any], steps: int) -> optax.Schedule:
  cooldown = max(1, round(config['cooldown_fraction'] * steps))
  fall = optax.linear_schedule(peak, peak * config['end_fraction'], cooldown)
  return optax.join_schedules([optax.constant_schedule(peak), fall], [steps - cooldown])


def _inverse_sqrt(peak: float, config: Mapping[str, Any], steps: int) -> optax.Schedule:
  del steps
  warmup = max(1, config['warmup_steps'])
  return lambda count: peak * jnp.sqrt(warmup / (warmup + count))


# Each takes the peak, the fields and the number of steps after warm-up, and counts from the end of warm-up.
SCHEDULES: dict[str, Callable[[float, Mapping[str, Any], int], optax.Schedule]] = {
  'constant': lambda peak, config, steps: optax.constant_schedule(peak),
  'cosine': lambda peak, config, steps: optax.cosine_decay_schedule(peak, steps, alpha=config['end_fraction']),
  'linear': lambda peak, config, steps: optax.linear_schedule(peak, peak * config['end_fraction'], steps),
  'wsd': _wsd,
  'inverse_sqrt': _inverse_sqrt,
}


def make_schedule(config: Mapping[str, Any], num_steps: int) -> optax.Schedule:
  """The learning rate of the update after `count` updates.

  Linear warm-up reaches `learning_rate` at update number `warmup_steps`; then by `schedule`: `cosine` and `linear` fall
  to `end_fraction` of the peak at update `decay_steps` (0: the whole run) and stay there (GPT-3: cosine to 10%);
  `wsd` stays at the peak and falls linearly in the last `cooldown_fraction` (warm-up, stable, decay: arXiv 2404.06395);
  `inverse_sqrt` is peak * sqrt(warmup / count). `config` has all the fields of `optimizers.FIELDS`.
  """
  peak, warmup = config['learning_rate'], config['warmup_steps']
  steps = max(1, (config['decay_steps'] or num_steps) - warmup)
  after = choose('optimizer.schedule', config['schedule'], SCHEDULES)(peak, config, steps)
  if not warmup:
    return after
  return optax.join_schedules([lambda count: peak * (count + 1) / warmup, after], [warmup])


class BatchRamp:
  """A batch that grows linearly in tokens from `first_rows` to `rows` over `ramp_tokens` (GPT-3, part 2.3).

  Rows double at a time, so that few shapes are compiled: first_rows times the largest power of two the ramp allows.
  """

  def __init__(self, rows: int, row_tokens: int, *, first_rows: int, ramp_tokens: int):
    if ramp_tokens > 0 and not 1 <= first_rows <= rows:
      raise UserError(f'batch_ramp.first_rows = {first_rows} must be from 1 to the batch_size of {rows}')
    stages = []  # (steps before, rows before, rows of a step), one for each size
    step = row = 0
    size = first_rows
    while size < rows and ramp_tokens > 0:
      stages.append((step, row, size))
      # The ramp reaches the next size when this many tokens are seen.
      reached = ramp_tokens * (min(2 * size, rows) - first_rows) / max(1, rows - first_rows)
      steps = max(0, -(-int(reached - row * row_tokens) // (size * row_tokens)))
      step, row, size = step + steps, row + steps * size, min(2 * size, rows)
    self._stages = [*stages, (step, row, rows)]
    self._row_tokens = row_tokens

  def _stage(self, index: int) -> tuple[int, int, int]:
    return self._stages[bisect.bisect_right(self._stages, index, key=lambda stage: stage[0]) - 1]

  def rows(self, index: int) -> int:
    """Rows of the batch after `index` steps."""
    return self._stage(index)[2]

  def start(self, index: int) -> int:
    """Rows seen in the first `index` steps: where the next batch starts in the data."""
    step, row, size = self._stage(index)
    return row + (index - step) * size
