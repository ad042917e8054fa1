"""Masks against their definitions, one pair of tokens at a time."""

import jax
import numpy as np
import pytest

from gpt_jax.models.masks import Band, Block, Causal, Column, Places, Prefix, SameSegment, Tree
from gpt_jax.types import Layout
from tests.models.layouts import random_layout

causal = lambda q, k: k['order'] <= q['order']
prefix = lambda q, k: bool(k['prefix'])
band = lambda q, k: -3 < q['order'] - k['order'] < 3
segment = lambda q, k: k['segment'] != 0 and q['segment'] == k['segment']

CASES = {
  'causal': (Causal(), causal),
  'prefix': (Prefix(), prefix),
  'band': (Band(3), band),
  'segment': (SameSegment(), segment),
  'banded': (Causal() & Band(3), lambda q, k: causal(q, k) and band(q, k)),
  'glm': (Causal() | Prefix(), lambda q, k: causal(q, k) or prefix(q, k)),
  'glm packed': (
    (Causal() | Prefix()) & SameSegment(),
    lambda q, k: (causal(q, k) or prefix(q, k)) and segment(q, k),
  ),
  'glm banded': (
    (Causal() | Prefix()) & Band(3) & SameSegment(),
    lambda q, k: (causal(q, k) or prefix(q, k)) and band(q, k) and segment(q, k),
  ),
  'column': (Causal() & Column(3), lambda q, k: causal(q, k) and (q['order'] - k['order']) % 3 == 0),
  'other blocks': (~Block(3), lambda q, k: q['order'] // 3 != k['order'] // 3),
  'places': (Places(4, 2, 3), lambda q, k: k['order'] % 4 == 2),
  'band or prefix': (Causal() & (Band(3) | Prefix()), lambda q, k: causal(q, k) and (band(q, k) or prefix(q, k))),
}


def brute_force(allowed, queries, keys):
  """The mask's table, by asking `allowed` about every pair."""
  rows, wide, long = *queries.order.shape, keys.order.shape[1]
  token = lambda layout, row, place: {
    name: np.asarray(getattr(layout, name))[row, place] for name in ('order', 'prefix', 'segment')
  }
  table = [
    [[allowed(token(queries, b, t), token(keys, b, s)) for s in range(long)] for t in range(wide)] for b in range(rows)
  ]
  return np.array(table, bool)


@pytest.mark.parametrize('name', CASES)
def test_mask_is_its_definition(name):
  mask, allowed = CASES[name]
  for seed in range(3):
    keys = random_layout(seed)
    queries = jax.tree.map(lambda x: x[:, 4:9], keys)  # as when reading with a cache: fewer queries than keys
    for asking in (keys, queries):
      want = brute_force(allowed, asking, keys)
      np.testing.assert_array_equal(mask(asking, keys), want)
      assert want.any() and not want.all()


def test_of_a_tree_a_node_sees_the_text_and_the_way_to_itself():
  """Text, then a tree whose siblings stand at one place, then slots of an older tree that nobody wrote."""
  parents = (-1, 0, 0, 1, 2, 2)
  order = np.array([[0, 1, 2, 3, 4, 4, 5, 5, 5, 3]])
  node = np.array([[0, 0, 0, 1, 2, 3, 4, 5, 6, 0]])
  segment = np.array([[1] * 9 + [0]])
  keys = Layout(order, order, 0 * order, segment, order < 0, node)
  queries = jax.tree.map(lambda x: x[:, 3:9], keys)
  mask = Causal() & Tree(parents) & SameSegment()
  ways = [{0}, {0, 1}, {0, 2}, {0, 1, 3}, {0, 2, 4}, {0, 2, 5}]
  want = [[True] * 3 + [other in way for other in range(6)] + [False] for way in ways]
  np.testing.assert_array_equal(mask(queries, keys), [want])


@pytest.mark.parametrize('name', CASES)
def test_looking_ahead_is_never_denied_wrongly(name):
  """A pattern may leave the future uncomputed if the mask says so: then it must allow none of it."""
  mask, _ = CASES[name]
  layouts = [random_layout(seed) for seed in range(5)]
  future = [np.asarray(mask(x, x) & (x.order[:, :, None] < x.order[:, None, :])) for x in layouts]
  assert mask.looks_ahead == np.any(future)


@pytest.mark.parametrize('name', CASES)
def test_nobody_sees_beyond_a_masks_reach(name):
  mask, _ = CASES[name]
  back, ahead = mask.reach
  for layout in (random_layout(seed) for seed in range(5)):
    distance = layout.order[:, None, :] - layout.order[:, :, None]
    seen = np.asarray(mask(layout, layout))
    assert not np.any(seen & ((distance < -back) | (distance > ahead)))


def test_reach_of_joined_masks():
  """Of what both allow the nearer, of what either allows the farther."""
  inf = float('inf')
  assert (Causal() & Band(5)).reach == (4, 0) and (Causal() | Band(5)).reach == (inf, 4)
  assert (Causal() & Band(5) & Block(3)).reach == (2, 0) and (~Band(5)).reach == (inf, inf)


def test_masks_are_values():
  assert Causal() & Band(3) == Causal() & Band(3) and Causal() & Band(3) != Causal() & Band(4)
  assert hash(Causal() | Prefix()) == hash(Causal() | Prefix())
