"""Trees of guesses: which tokens a drafter proposes together, and which of them follow which."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import heapq
from typing import Any

from jaxtyping import Float, Int
import numpy as np

from gpt_jax.types import UserError

TOPK = 10
"""The choices of a head that a tree may take (Medusa's code)."""


@dataclasses.dataclass(frozen=True)
class Tree:
  """A tree of guesses, described by their ranks: the same for every text, so that one program reads any of them.

  Node 0 is the root: the token drawn already. Node i is the choices[i]-th likeliest token, counted from 0, of the head
  of its depth, and follows node parents[i].

  Raises:
    UserError: not a tree in this order, or two children of a node that are the same choice.
  """

  parents: tuple[int, ...]
  """parents[i] < i; the root's is -1."""
  choices: tuple[int, ...]
  """The root's says nothing: it is 0."""

  def __post_init__(self) -> None:
    parents, choices = self.parents, self.choices
    if not parents or len(parents) != len(choices) or parents[0] != -1 or choices[0] != 0:
      raise UserError('a tree needs a parent and a choice for each node; those of its root are -1 and 0')
    wrong = next((i for i in range(1, len(parents)) if not 0 <= parents[i] < i or choices[i] < 0), None)
    if wrong is not None:
      raise UserError(f'node {wrong} of the tree, choice {choices[wrong]}, must follow a node before it')
    if len({*zip(parents, choices, strict=True)}) < len(parents):
      raise UserError('two nodes of the tree are the same choice after the same node: leave one out')

  def __len__(self) -> int:
    return len(self.parents)

  @functools.cached_property
  def depths(self) -> Int[np.ndarray, 'nodes']:
    """Guesses on the way from the root: the root's depth is 0, and node i is of head depths[i]."""
    depths = np.zeros(len(self), np.int32)
    for node, parent in enumerate(self.parents[1:], 1):
      depths[node] = depths[parent] + 1
    return depths

  @property
  def max_depth(self) -> int:
    return int(self.depths.max())

  @functools.cached_property
  def paths(self) -> Int[np.ndarray, 'nodes depth']:
    """The nodes from the root to each node, which is repeated up to the depth of the tree."""
    paths = np.zeros((len(self), self.max_depth + 1), np.int32)
    for node, parent in enumerate(self.parents[1:], 1):
      paths[node] = paths[parent]
      paths[node, self.depths[node] :] = node
    return paths

  @property
  def is_chain(self) -> bool:
    """Whether every node but the last has one child."""
    return self.parents == tuple(range(-1, len(self) - 1))

  def values(self, accuracies: Float[np.ndarray, 'M k'] | Sequence[Sequence[float]]) -> Float[np.ndarray, 'nodes']:
    """The chance that each node is right, were the heads right independently: products along the ways from the root.

    Their sum is the tokens that a step is expected to yield, the root counted.
    """
    values = np.ones(len(self))
    for node, parent in enumerate(self.parents[1:], 1):
      values[node] = values[parent] * accuracies[self.depths[node] - 1][self.choices[node]]
    return values

  def to_json(self) -> dict[str, list[int]]:
    return {'parents': list(self.parents), 'choices': list(self.choices)}


def from_json(value: Mapping[str, Any]) -> Tree:
  """The tree that `to_json` wrote.

  Raises:
    UserError: it is none.
  """
  parents, choices = (value.get(name) for name in ('parents', 'choices'))
  for numbers in (parents, choices):
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
      raise UserError('a tree is written as two lists of whole numbers, "parents" and "choices"')
  return Tree(tuple(parents or ()), tuple(choices or ()))


def chain(gamma: int) -> Tree:
  """The tree of one branch: the likeliest token of each of `gamma` heads, or `gamma` tokens of a draft model."""
  return Tree((-1, *range(gamma)), (0,) * (gamma + 1))


def grow_tree(accuracies: Float[np.ndarray, 'M k'], num_nodes: int) -> Tree:
  """The tree of `num_nodes` nodes, the root counted, that yields the most tokens a step (Medusa, section 2.3.3).

  From the root on, the node most likely right is added: a node is right if all on its way are, each with the accuracy
  of its head's choice. As no accuracy exceeds 1, no other tree of that size has a larger sum. Nodes stand in the order
  in which they were added: the first n of them are the best tree of n nodes. Of equals, the one found first.

  Args:
    accuracies: how often choice i of head k is right, that is top-(i+1) minus top-i accuracy; head k is at depth k + 1.
    num_nodes: as many as there are, if there are fewer.

  Raises:
    UserError: `num_nodes` is less than 1, or a number is no probability.
  """
  accuracies = np.asarray(accuracies, np.float64)
  if num_nodes < 1:
    raise UserError(f'num_nodes = {num_nodes} must be at least 1, the root')
  if accuracies.ndim != 2 or not ((accuracies >= 0) & (accuracies <= 1)).all():
    raise UserError('accuracies must be a table of numbers from 0 to 1, a row a head and a column a choice')
  parents, choices, depths = [-1], [0], [0]
  found: list[tuple[float, int, int]] = []  # best first: minus the value, parent, choice

  def offer(node: int, value: float) -> None:
    if depths[node] < len(accuracies):
      for choice, accuracy in enumerate(accuracies[depths[node]]):
        heapq.heappush(found, (-value * float(accuracy), node, choice))

  offer(0, 1.0)
  while found and len(parents) < num_nodes:
    value, parent, choice = heapq.heappop(found)
    parents.append(parent)
    choices.append(choice)
    depths.append(depths[parent] + 1)
    offer(len(parents) - 1, -value)
  return Tree(tuple(parents), tuple(choices))
