"""How well a model predicts held-out text."""

from collections.abc import Callable, Iterable, Iterator
import math

import jax
import numpy as np

from gpt_jax.types import Batch, LossFn, Params, UserError


def evaluate(
  loss_fn: LossFn, params: Params, batches: Iterable[Batch], *, num_bytes: int | None = None
) -> dict[str, float]:
  """The loss in nats a token, its perplexity exp(loss), and the means of `loss_fn`'s metrics.

  `num_bytes`, the length of the predicted text in UTF-8, adds `bits_per_byte` = total nats / ln 2 / num_bytes, which
  compares models of different tokenizers. The model is one without dropout. Batches go out without waiting for one
  another, and totals add in float64. The compiled program is kept for the same `loss_fn`.

  Raises:
    UserError: there is nothing to predict.
  """
  measure = jax.jit(loss_fn)
  rng = jax.random.key(0)  # without dropout nobody asks for it
  measured = []
  for batch in _full(batches):
    loss, metrics = measure(params, batch, rng)
    measured.append({name: (mean.total, mean.weight) for name, mean in {**metrics, 'loss': loss}.items()})
  sums: dict[str, np.ndarray] = {}
  for means in jax.device_get(measured):
    for name, mean in means.items():
      sums[name] = np.add(sums.get(name, np.zeros(2)), mean)
  total, weight = sums.get('loss', np.zeros(2))
  if not weight:
    raise UserError('the evaluation data has no token to predict; give it at least one row')
  result = {name: float(np.divide(*sums[name])) for name in sums if sums[name][1]}
  result['perplexity'] = float(np.exp(result['loss']))
  if num_bytes is not None:
    result['bits_per_byte'] = float(total) / math.log(2) / num_bytes
  return result


def once(measure: Callable[[Params], dict[str, float]]) -> Callable[[Params], dict[str, float]]:
  """The same, which is not asked twice of the parameters that it was asked of last: they are known by identity."""
  last: list[tuple[Params, dict[str, float]]] = []

  def measured(params: Params) -> dict[str, float]:
    if not last or last[0][0] is not params:
      last[:] = [(params, measure(params))]
    return last[0][1]

  return measured


def _full(batches: Iterable[Batch]) -> Iterator[Batch]:
  """Batches of as many rows as the first; a smaller one is filled up with rows of zeros, which weigh nothing."""
  rows = 0
  for batch in batches:
    missing = max(rows - len(batch['tokens']), 0)
    rows = rows or len(batch['tokens'])
    fill = lambda x, missing=missing: np.pad(np.asarray(x), [(0, missing)] + [(0, 0)] * (np.ndim(x) - 1))
    yield jax.tree.map(fill, dict(batch)) if missing else batch
