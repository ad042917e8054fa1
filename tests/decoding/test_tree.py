"""Trees of guesses: against brute force, and by hand."""

import numpy as np
import pytest

from gpt_jax.decoding.tree import Tree, chain, from_json, grow_tree
from gpt_jax.types import UserError

SMALL = Tree((-1, 0, 0, 1, 1, 3, 2), (0, 0, 1, 0, 2, 0, 0))
"""The root's two children; the first has two of its own, of which one has one; the second has one."""


def ways(tree: Tree) -> list[list[int]]:
  """The nodes from the root to each node."""
  found: list[list[int]] = []
  for node, parent in enumerate(tree.parents):
    found.append([*(found[parent] if node else []), node])
  return found


def random_tree(seed: int, size: int = 12) -> Tree:
  generator = np.random.default_rng(seed)
  parents, choices = [-1], [0]
  while len(parents) < size:
    parent, choice = int(generator.integers(len(parents))), int(generator.integers(4))
    if (parent, choice) not in zip(parents, choices, strict=True):
      parents.append(parent)
      choices.append(choice)
  return Tree(tuple(parents), tuple(choices))


def test_a_small_tree_by_hand():
  np.testing.assert_array_equal(SMALL.depths, [0, 1, 1, 2, 2, 3, 2])
  assert SMALL.paths.tolist()[3:] == [[0, 1, 3, 3], [0, 1, 4, 4], [0, 1, 3, 5], [0, 2, 6, 6]]
  assert SMALL.max_depth == 3 and len(SMALL) == 7
  assert hash(SMALL) == hash(Tree(SMALL.parents, SMALL.choices)) and chain(6) != SMALL
  accuracies = [[0.5, 0.25, 0.125], [0.5, 0.0, 0.1], [0.4, 0.0, 0.0]]
  np.testing.assert_allclose(SMALL.values(accuracies), [1, 0.5, 0.25, 0.25, 0.05, 0.1, 0.125])
  assert from_json(SMALL.to_json()) == SMALL


@pytest.mark.parametrize('tree', [SMALL, chain(0), chain(3), *map(random_tree, range(5))])
def test_of_any_tree_by_brute_force(tree):
  to = ways(tree)
  np.testing.assert_array_equal(tree.depths, [len(way) - 1 for way in to])
  assert tree.paths.tolist() == [way + [way[-1]] * (tree.max_depth + 1 - len(way)) for way in to]
  assert tree.is_chain == all(way == list(range(len(way))) for way in to)


def test_a_chain():
  tree = chain(3)
  assert tree == Tree((-1, 0, 1, 2), (0, 0, 0, 0))
  assert tree.is_chain and chain(0).is_chain
  assert tree.paths.tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 2, 2], [0, 1, 2, 3]]


def sums_of_all_trees(accuracies: np.ndarray, size: int) -> float:
  """The best sum of values of any tree of this size, by trying all."""
  heads, k = accuracies.shape
  best = 0.0
  frontier = {frozenset[tuple[int, ...]]()}  # a node is the choices on its way
  for _ in range(size - 1):
    grown = set()
    for tree in frontier:
      for way in [(), *tree]:
        if len(way) < heads:
          grown |= {tree | {(*way, choice)} for choice in range(k) if (*way, choice) not in tree}
    frontier = grown
  for tree in frontier:
    best = max(best, 1 + sum(np.prod([accuracies[d, c] for d, c in enumerate(way)]) for way in tree))
  return best


@pytest.mark.parametrize(('heads', 'k', 'size'), [(1, 3, 3), (2, 2, 5), (3, 2, 6), (2, 3, 6)])
def test_no_tree_of_its_size_is_better(heads, k, size):
  for seed in range(3):
    accuracies = np.random.default_rng(seed).dirichlet(np.ones(k + 1), heads)[:, :k]  # in no order
    tree = grow_tree(accuracies, size)
    assert len(tree) == size and tree.max_depth <= heads
    assert tree.values(accuracies).sum() == pytest.approx(sums_of_all_trees(accuracies, size))


def test_it_grows_node_by_node():
  """The tree of fewer nodes is the beginning of the larger one; values fall."""
  accuracies = np.array([[0.56, 0.12, 0.05], [0.32, 0.11, 0.06], [0.2, 0.08, 0.05]])
  whole = grow_tree(accuracies, 20)
  assert (np.diff(whole.values(accuracies)) <= 1e-12).all()
  for size in (1, 2, 7):
    assert grow_tree(accuracies, size) == Tree(whole.parents[:size], whole.choices[:size])
  assert whole.parents[:4] == (-1, 0, 1, 0) and whole.choices[:4] == (0, 0, 0, 1), '0.56, 0.1792, 0.12'


def test_there_may_be_fewer_nodes_than_asked_for():
  assert len(grow_tree(np.full((2, 2), 0.3), 64)) == 1 + 2 + 4


@pytest.mark.parametrize(
  ('parents', 'choices', 'message'),
  [
    ((), (), 'those of its root are -1 and 0'),
    ((0,), (0,), 'those of its root are -1 and 0'),
    ((-1, 0), (0,), 'a parent and a choice for each'),
    ((-1, 1), (0, 0), 'node 1 of the tree, choice 0, must follow a node before it'),
    ((-1, 0), (0, -1), 'node 1 of the tree'),
    ((-1, 0, 0), (0, 1, 1), 'the same choice after the same node'),
  ],
)
def test_what_is_no_tree(parents, choices, message):
  with pytest.raises(UserError, match=message):
    Tree(parents, choices)


def test_what_grows_no_tree():
  with pytest.raises(UserError, match='num_nodes = 0 must be at least 1'):
    grow_tree(np.full((1, 1), 0.5), 0)
  with pytest.raises(UserError, match='numbers from 0 to 1'):
    grow_tree(np.full((1, 1), 1.5), 2)
  with pytest.raises(UserError, match='two lists of whole numbers'):
    from_json({'parents': [-1, 0.5], 'choices': [0, 0]})
