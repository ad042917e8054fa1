"""Mixtures: an order that depends on seed and step alone."""

import collections
import gc
import threading
import time

import jax
import numpy as np
import pytest

from gpt_jax.data.mixture import batches, prefetched
from gpt_jax.data.rows import Rows, Stream
from gpt_jax.types import UserError


def make(first, count, separate=False):
  """Rows of context 1 whose first tokens are first to first + count - 1."""
  tokens = np.arange(first, first + count + 1, dtype=np.uint16)
  return Rows(Stream('a', tokens, np.array([0, count // 2]), count), 1, separate_documents=separate)


def seen(source, steps):
  return [source(step)['tokens'][:, 0].tolist() for step in steps]


def assert_same(one, other):
  for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(left, right)


def flat(lists):
  return [x for part in lists for x in part]


def test_each_epoch_gives_each_row_once_in_a_new_order():
  order = flat(seen(batches([make(0, 12)], [1.0], 4, seed=0), range(9)))
  epochs = [order[:12], order[12:24], order[24:]]
  assert all(sorted(epoch) == [*range(12)] for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs} | {tuple(range(12))}) == 4


def test_the_order_depends_on_seed_and_step_alone():
  one, again, other = (batches([make(0, 50), make(100, 30)], [2, 1], 6, seed=seed) for seed in (1, 1, 2))
  whole = seen(one, range(20))
  assert seen(again, [13, 2, 19, 2]) == [whole[13], whole[2], whole[19], whole[2]]
  assert seen(other, range(20)) != whole


def test_sources_take_turns_by_weight_and_each_keeps_its_epochs():
  source = batches([make(0, 40), make(100, 7), make(200, 300)], [5, 3, 2], 10, seed=3)
  order = flat(seen(source, range(100)))
  owners = collections.Counter(number // 100 if number < 200 else 2 for number in order)
  assert [owners[k] for k in range(3)] == [500, 300, 200]
  small = [number for number in order if 100 <= number < 200]
  assert all(sorted(small[i : i + 7]) == [*range(100, 107)] for i in range(0, 294, 7))
  assert len({number for number in order if number >= 200}) == 200  # none twice in its first epoch
  for step in range(100):
    assert (
      4 <= sum(number < 100 for number in order[10 * step : 10 * step + 10]) <= 6
    )  # in every batch, not on average only


@pytest.mark.parametrize('separate', [False, True])
@pytest.mark.parametrize('hosts', [2, 4])
def test_any_number_of_hosts_sees_the_same_batches(hosts, separate):
  rows = [make(0, 50, separate), make(100, 30, separate)]
  alone = batches(rows, [2, 1], 8, seed=1)
  parts = [batches(rows, [2, 1], 8, seed=1, host=host, hosts=hosts) for host in range(hosts)]
  for step in range(6):
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *(part(step) for part in parts))
    assert_same(alone(step), joined)


def test_a_growing_batch_reads_the_same_rows():
  sizes = [2, 2, 4, 6, 6, 8]
  before = np.cumsum([0, *sizes]).tolist()
  rows = [make(0, 50)]
  growing = seen(batches(rows, [1], lambda step: before[step], seed=1), range(6))
  assert [len(batch) for batch in growing] == sizes
  assert flat(growing) == flat(seen(batches(rows, [1], 4, seed=1), range(7)))


def test_a_batch_is_its_rows():
  batch = batches([make(0, 50, True), make(100, 30, True)], [1, 1], 6, seed=0)(2)
  np.testing.assert_array_equal(batch['tokens'][:, 1], batch['tokens'][:, 0] + 1)
  ends = {25, 115}  # where a document begins
  np.testing.assert_array_equal(batch['weights'][:, 1] == 0, [token in ends for token in batch['tokens'][:, 1]])
  assert batch['tokens'].dtype == np.int32 and batch['weights'].dtype == np.float32


def test_bad_mixtures_say_so():
  rows = make(0, 10)
  for weights in [1, 1], [0], []:
    with pytest.raises(UserError, match='weights of the mixture'):
      batches([rows], weights, 2, seed=0)
  with pytest.raises(UserError, match='differ in context or separate_documents'):
    batches([rows, make(0, 10, True)], [1, 1], 2, seed=0)
  with pytest.raises(UserError, match='batch_size 3 does not divide by the number of hosts, 2'):
    batches([rows], [1], 3, seed=0, hosts=2)(0)


def test_prefetched_batches_are_the_same():
  source = batches([make(0, 50)], [1], 4, seed=0)
  ahead = prefetched(source)
  for step in [0, 1, 2, 7, 3, 4, 4, 0]:
    assert_same(ahead(step), source(step))


def test_prefetching_is_ahead_and_its_thread_ends():
  asked = []

  def source(step):
    asked.append(step)
    if step == 5:
      raise UserError('step 5 is broken')
    return {'tokens': np.full((1, 2), step)}

  ahead = prefetched(source, depth=2)
  assert ahead(0)['tokens'][0, 0] == 0
  deadline = time.time() + 5
  while len(asked) < 3 and time.time() < deadline:
    time.sleep(0.001)
  assert asked == [0, 1, 2]
  ahead(3), ahead(4)
  with pytest.raises(UserError, match='step 5'):
    ahead(5)
  del ahead
  gc.collect()
  readers = lambda: [thread for thread in threading.enumerate() if thread.name.startswith('batches')]
  while readers() and time.time() < deadline:
    time.sleep(0.001)
  assert not readers()
