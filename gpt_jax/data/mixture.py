"""Batches of several sources in an order that is a pure function of seed and step."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import grain
import jax
import numpy as np

from gpt_jax.data.rows import Dataset, slice_of_host
from gpt_jax.types import Batch, UserError

Source = Callable[[int], Batch]
"""The batch of a step."""


def batches(
  rows: Sequence[Dataset],
  weights: Sequence[float | int],
  batch_size: int | Callable[[int], int],
  seed: int,
  *,
  host: int = 0,
  hosts: int = 1,
) -> Source:
  """The batch of each step, this host's slice of it: the hosts' slices in order are the global batch.

  There is one endless row of rows, the same for any number of hosts: each source is shuffled anew in every epoch, and
  within an epoch gives each of its rows once; sources take turns in proportion to `weights`. Any step can be asked
  for, in any order.

  Args:
    rows: of each source; one context, all or none with separate documents.
    weights: shares of the batches' rows, of any sum.
    batch_size: rows of a global batch; where it varies, a function: the number of rows in all batches before a step.
    seed: of the order.
    host: the number of this process, of `hosts`.
    hosts: number of processes.
  """
  if len(rows) != len(weights) or not rows or min(weights) <= 0:
    raise UserError(f'weights of the mixture: {len(rows)} sources need a positive weight each, found {list(weights)}')
  if len({(source.context, source.separate_documents) for source in rows}) > 1:
    raise UserError('the sources of a mixture differ in context or separate_documents')
  # A number stands for a row: its source's first number plus its index there. Only the order is Grain's; a whole batch
  # is then gathered at once.
  first = np.cumsum([0, *map(len, rows)])
  orders = [
    grain.MapDataset.range(int(first[k]), int(first[k + 1])).seed(seed + k).shuffle().repeat() for k in range(len(rows))
  ]
  order = grain.MapDataset.mix(orders, weights=list(weights)) if len(rows) > 1 else orders[0]

  start = batch_size if callable(batch_size) else lambda step: step * batch_size

  def source(step: int) -> Batch:
    places = slice_of_host(np.arange(start(step), start(step + 1)), host, hosts)
    numbers = np.array([order[place] for place in places], np.int64)
    owners = np.searchsorted(first, numbers, 'right') - 1
    parts = [rows[k].batch(numbers[owners == k] - first[k], step) for k in range(len(rows))]
    back = np.argsort(np.argsort(owners, kind='stable'))  # undoes the grouping by source
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[back], *parts)

  return source


def prefetched(source: Source, depth: int = 2) -> Source:
  """The same batches, the `depth` following ones read by a thread while the caller computes.

  The thread ends when the function is dropped.
  """
  pool = ThreadPoolExecutor(1, 'batches')
  ahead: dict[int, Future] = {}

  def get(step: int) -> Batch:
    wanted = range(step, step + depth + 1)
    for other in [other for other in ahead if other not in wanted]:
      ahead.pop(other).cancel()
    for other in wanted:
      if other not in ahead:
        ahead[other] = pool.submit(source, other)
    return ahead.pop(step).result()

  return get
