"""Attention masks: predicates on two layouts, who asks and who is asked, joined with & and |."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Bool
import numpy as np

from gpt_jax.types import Layout

Reach = tuple[int | float, int | float]
"""Places back and ahead."""


class Mask:
  """May the query token see the key token? Asked about numpy's arrays, it answers with one."""

  reach: Reach = (math.inf, math.inf)
  """How many places back and ahead of itself a token may see at most: what lies beyond need not be computed."""

  of_order: bool = False
  """Whether it asks about order alone: what it lets whom see is known before any row is."""

  @property
  def looks_ahead(self) -> bool:
    """Whether a token may see a later one of its row."""
    return self.reach[1] > 0

  def __call__(self, queries: Layout, keys: Layout) -> Bool[Array | np.ndarray, 'B T S']:
    raise NotImplementedError

  def __and__(self, other: 'Mask') -> 'Mask':
    return Both(self, other)

  def __or__(self, other: 'Mask') -> 'Mask':
    return Either(self, other)

  def __invert__(self) -> 'Mask':
    return Not(self)


@dataclasses.dataclass(frozen=True)
class Joined(Mask):
  """Two masks as one."""

  left: Mask
  right: Mask

  @property
  def of_order(self) -> bool:  # type: ignore[override]
    return self.left.of_order and self.right.of_order


class Both(Joined):
  """What two masks both allow."""

  @property
  def reach(self) -> Reach:  # type: ignore[override]
    back, ahead = map(min, self.left.reach, self.right.reach)
    return back, ahead

  def __call__(self, queries: Layout, keys: Layout) -> Bool[Array | np.ndarray, 'B T S']:
    return self.left(queries, keys) & self.right(queries, keys)


class Either(Joined):
  """What one of two masks allows."""

  @property
  def reach(self) -> Reach:  # type: ignore[override]
    back, ahead = map(max, self.left.reach, self.right.reach)
    return back, ahead

  def __call__(self, queries: Layout, keys: Layout) -> Bool[Array | np.ndarray, 'B T S']:
    return self.left(queries, keys) | self.right(queries, keys)


@dataclasses.dataclass(frozen=True)
class Not(Mask):
  """What a mask forbids."""

  mask: Mask

  @property
  def of_order(self) -> bool:  # type: ignore[override]
    return self.mask.of_order

  def __call__(self, queries: Layout, keys: Layout) -> Bool[Array | np.ndarray, 'B T S']:
    return ~self.mask(queries, keys)


@dataclasses.dataclass(frozen=True)
class Causal(Mask):
  """A token sees itself and what stands before it in the row."""

  reach = (math.inf, 0)
  of_order = True

  def __call__(self, queries: Layout, keys: Layout) -> Bool[Array | np.ndarray, 'B T S']:
    return queries.order[:, :, None] >= keys.order[:, None, :]


@dataclasses.dataclass(frozen=True)
class Prefix(Mask):
  """Everyone sees the tokens of the prefix (prefix language models; GLM's part A)."""

  def __call__(self, queries: Layout, keys: Layout) -> Bool[Array | np.ndarray, 'B T S']:
    shape = (*queries.prefix.shape, keys.prefix.shape[1])
    return jnp.broadcast_to(keys.prefix[:, None, :], shape)


@dataclasses.dataclass(frozen=True)
class Band(Mask):
  """The `width` nearest tokens on either side, the token itself among them."""

  width: int
  of_order = True

  @property
  def reach(self) -> Reach:  # type: ignore[override]
    return self.width - 1, self.width - 1

  def __call__(self, queries: Layout, keys: Layout) -> Bool[Array | np.ndarray, 'B T S']:
    return abs(queries.order[:, :, None] - keys.order[:, None, :]) < self.width


@dataclasses.dataclass(frozen=True)
class Column(Mask):
  """Tokens whose distance is a multiple of `stride`, the token itself among them."""

  stride: int
  of_order = True

  def __call__(self, queries: Layout, keys: Layout) -> Bool[Array | np.ndarray, 'B T S']:
    return (queries.order[:, :, None] - keys.order[:, None, :]) % self.stride == 0


@dataclasses.dataclass(frozen=True)
class Block(Mask):
  """Tokens of the same block of `size`, of which a row is made."""

  size: int
  of_order = True

  @property
  def reach(self) -> Reach:  # type: ignore[override]
    return self.size - 1, self.size - 1

  def __call__(self, queries: Layout, keys: Layout) -> Bool[Array | np.ndarray, 'B T S']:
    return queries.order[:, :, None] // self.size == keys.order[:, None, :] // self.size


@dataclasses.dataclass(frozen=True)
class Places(Mask):
  """Of every block of `size` the tokens from place `start` up to `stop`."""

  size: int
  start: int
  stop: int
  of_order = True

  def __call__(self, queries: Layout, keys: Layout) -> Bool[Array | np.ndarray, 'B T S']:
    place = keys.order[:, None, :] % self.size
    return (place >= self.start) & (place < self.stop) & (queries.order[:, :, None] >= 0)


@dataclasses.dataclass(frozen=True)
class Tree(Mask):
  """Of a tree of candidates, a node sees itself and those it descends from; everyone sees the text before the tree.

  Joined to another mask by &, as siblings stand at the same place (Medusa, figure 2; SpecInfer, section 4).
  """

  parents: tuple[int, ...]
  """Of each node, numbered from 0; a root has -1. Parents come before their children."""

  def __call__(self, queries: Layout, keys: Layout) -> Bool[Array | np.ndarray, 'B T S']:
    assert queries.node is not None and keys.node is not None
    seen = np.eye(len(self.parents) + 1, dtype=bool)
    seen[:, 0] = True
    for node, parent in enumerate(self.parents, 1):
      seen[node] |= seen[parent + 1]
    return jnp.asarray(seen)[queries.node[:, :, None], keys.node[:, None, :]]


@dataclasses.dataclass(frozen=True)
class SameSegment(Mask):
  """Documents packed in one row do not see each other, and nobody sees padding."""

  def __call__(self, queries: Layout, keys: Layout) -> Bool[Array | np.ndarray, 'B T S']:
    same = jnp.equal(queries.segment[:, :, None], keys.segment[:, None, :])
    return same & (keys.segment > 0)[:, None, :]
