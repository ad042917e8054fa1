"""The patterns of attention: which keys queries are compared with, and in which parts."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
import numpy as np

from gpt_jax.models import masks
from gpt_jax.models.chunks import chunked
from gpt_jax.models.kernels import FUSED, Job
from gpt_jax.models.softmax import Attended, Bias, Drop, softmax_attention
from gpt_jax.models.spread import along_sequence, each_its_own
from gpt_jax.types import Layout

LEAST_HALVED = 128
"""Tokens of a row from which halving pays."""

Attend = Callable[..., Attended]
"""A pattern's `attend`."""

Cut = Callable[[jax.Array], jax.Array]
"""Of an array [B, T, ...], rows of another length."""


def joined(parts: Sequence[Attended]) -> Attended:
  """Attention to keys that lie in several parts, each key in one: what each found, by its share of the softmax."""
  sums = jnp.stack([sum_ for _, sum_ in parts])
  whole = jax.nn.logsumexp(sums, axis=0)
  shares = jnp.exp(sums - whole)[..., None]
  out = sum(share * found for share, (found, _) in zip(shares, parts, strict=True))
  return jnp.asarray(out).astype(parts[0][0].dtype), whole


class Pattern:
  """Which keys queries are compared with, and how that is computed; a dataclass with at least a `mask`."""

  mask: masks.Mask

  def keys_seen(self, length: int, causal: bool = False) -> float | int:
    """Keys of a query in a row of `length` tokens: what utilisation counts.

    `causal`: on the average, those alone that are not behind it, where the mask does not look ahead; else their number
    where there are most, the causal half not taken off.
    """
    return self._seen_causally(length) if causal and not self.mask.looks_ahead else self._seen_at_most(length)

  def _seen_at_most(self, length: int) -> float | int:
    raise NotImplementedError

  def _seen_causally(self, length: int) -> float:
    raise NotImplementedError

  def attend(
    self,
    query: Float[Array, 'B T N H'],
    key: Float[Array, 'B S K H'],
    value: Float[Array, 'B S K H'],
    queries: Layout,
    keys: Layout,
    bias: Bias | None = None,
    drop: Drop | None = None,
    kernel: str = 'auto',
  ) -> Attended:
    """Attention under the mask, within segments; queries may be fewer than keys, as when they read a cache."""
    return self._attended(query, key, value, queries, keys, bias, drop, kernel)

  def _attended(self, query, key, value, queries, keys, bias, drop, kernel) -> Attended:
    raise NotImplementedError

  def __call__(self, query, key, value, queries, keys, bias=None, drop=None, kernel='auto') -> Float[Array, 'B T N H']:
    """What queries found, by a kernel of `kernels.KERNELS`; for what it takes see `attend`.

    On a mesh with an axis `sequence` each device has a part of the queries of a row, but for dropout.
    """
    if drop is None and query.shape[1] == key.shape[1] and along_sequence(query.shape[1]):
      attend = lambda q, k, v, asking, asked: self.attend(q, k, v, asking, asked, bias, None, kernel)[0]
      return each_its_own(attend, query, key, value, queries, keys, cut=True)
    name, _ = self.job(query, key, bias, drop).choose(kernel)
    if name in FUSED and self.seen is not None:
      return FUSED[name](query, key, value, queries, self.seen)
    return self.attend(query, key, value, queries, keys, bias, drop, kernel)[0]

  @property
  def seen(self) -> masks.Mask | None:
    """All that a query may see as one mask, segments apart; None: there are several, or parts that are joined."""
    return None

  @property
  def kept(self) -> int | None:
    """Keys that a cache must keep, the last of a text, for whoever comes to see what it may; None: all."""
    back = math.inf if self.seen is None else self.seen.reach[0]
    return None if math.isinf(back) else int(back) + 1

  def job(self, query: Any, key: Any, bias: Bias | None = None, drop: Drop | None = None) -> Job:
    """What is asked of a kernel, by arrays [B, T, N, H] and [B, S, K, H] or their shapes."""
    rows, length, heads, width = query.shape
    return Job(
      rows, length, key.shape[1], heads, width, str(query.dtype), self.seen, bias is not None, drop is not None
    )

  def under(self, mask: masks.Mask) -> 'Pattern':
    """The same under one mask more."""
    changed: Any = self
    return dataclasses.replace(changed, mask=self.mask & mask)


@dataclasses.dataclass(frozen=True)
class Dense(Pattern):
  """Every query weighs every key that the mask lets it see.

  Where nobody looks ahead, the first half of a row is not compared with the second: a quarter of the work saved.
  """

  mask: masks.Mask = masks.Causal()

  def _seen_at_most(self, length):
    return length

  def _seen_causally(self, length):
    return (length + 1) / 2

  @property
  def seen(self):
    return self.mask

  def _attended(self, query, key, value, queries, keys, bias, drop, kernel):
    if self.job(query, key, bias, drop).part().choose(kernel)[0] == 'chunked':
      return chunked(query, key, value, queries, keys, self.mask & masks.SameSegment(), bias)

    def attend(asking: slice, asked: slice) -> Attended:
      some, others = jax.tree.map(lambda x: x[:, asking], queries), jax.tree.map(lambda x: x[:, asked], keys)
      visible = (self.mask & masks.SameSegment())(some, others)
      scores = None if bias is None else bias(some, others, *query.shape[2:])
      return softmax_attention(query[:, asking], key[:, asked], value[:, asked], visible, scores, drop)

    length = query.shape[1]
    if length != key.shape[1] or self.mask.looks_ahead or length < LEAST_HALVED:
      return attend(slice(None), slice(None))
    first, second = slice(length // 2), slice(length // 2, None)
    halves = attend(first, first), attend(second, slice(None))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *halves)


@dataclasses.dataclass(frozen=True)
class Banded(Pattern):
  """Every query weighs the `width` nearest keys: time and memory grow with T * width (GPT-3's locally banded layers).

  The row is cut in blocks of `width`; the queries of a block can see only the block before, their own and, under a mask
  that looks ahead, the one after. So each block is a small dense attention of its own, under the same mask. In chunks,
  the keys of a chunk of queries are a window instead, as long as the mask reaches.
  """

  width: int
  mask: masks.Mask = masks.Causal()

  def _seen_at_most(self, length):
    return min(self.width, length)

  def _seen_causally(self, length):
    width = min(self.width, length)
    return width - width * (width - 1) / (2 * length)

  @property
  def seen(self):
    return self.mask & masks.Band(self.width)

  def _attended(self, query, key, value, queries, keys, bias, drop, kernel):
    dense = Dense(self.seen)
    batch, length = query.shape[:2]
    chunks = self.job(query, key, bias, drop).part(compared=2 * self.width).choose(kernel)[0] == 'chunked'
    if length != key.shape[1] or length <= self.width or chunks:  # reading from a cache, or nothing to save in blocks
      return dense.attend(query, key, value, queries, keys, bias, drop, kernel)
    neighbours = (-1, 0, 1) if self.mask.looks_ahead else (-1, 0)

    def around(x: jax.Array) -> jax.Array:
      x = _blocks(x, self.width)
      padded = jnp.pad(x, [(0, 0), (1, 1)] + [(0, 0)] * (x.ndim - 2))
      parts = [padded[:, 1 + n : 1 + n + x.shape[1]] for n in neighbours]
      return fold(jnp.concatenate(parts, axis=2))

    fold = lambda x: x.reshape(-1, *x.shape[2:])
    cut = lambda x: fold(_blocks(x, self.width))
    found = dense.attend(
      cut(query), around(key), around(value), jax.tree.map(cut, queries), jax.tree.map(around, keys), bias, drop, kernel
    )
    return jax.tree.map(lambda x: x.reshape(batch, -1, *x.shape[2:])[:, :length], found)


def _blocks(x: Shaped[Array, 'B T ...'], size: int) -> Shaped[Array, 'B _ size ...']:
  """A row in blocks of `size` tokens, filled up with zeros: no segment, so that nobody sees them."""
  x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2))
  return x.reshape(x.shape[0], -1, size, *x.shape[2:])


def _blocks_before(length: int, size: int) -> float:
  """Whole blocks of a row that lie before a token's place in it, on the average."""
  whole, rest = divmod(length, size)
  return whole * (size * (whole - 1) / 2 + rest) / length


def _cut(dense: Dense, cut: Cut, whole: Cut, query, key, value, queries, keys, *how) -> Attended:
  """Each piece of a row, as `cut` makes rows of them, by itself; `whole` puts what they found together again."""
  asking, asked = jax.tree.map(cut, (queries, keys))
  found = dense.attend(cut(query), cut(key), cut(value), asking, asked, *how)
  return jax.tree.map(lambda x: whole(x)[:, : query.shape[1]], found)


def _by_head(kinds: Sequence[Attend], query, key, value, queries, keys, bias, *how) -> Attended:
  """Heads take turns among kinds of attention: head h is of kind h % len(kinds)."""
  if len(kinds) == 1:
    return kinds[0](query, key, value, queries, keys, bias, *how)
  heads = np.arange(query.shape[2])
  turns = [heads[kind :: len(kinds)] for kind in range(min(len(kinds), len(heads)))]
  found = []
  for attend, chosen in zip(kinds, turns, strict=False):  # there may be more kinds than heads
    shared = chosen // (len(heads) // key.shape[2])
    some = None if bias is None else lambda q, k, n, h, chosen=chosen: bias(q, k, len(heads), h)[:, chosen]
    found.append(attend(query[:, :, chosen], key[:, :, shared], value[:, :, shared], queries, keys, some, *how))
  order = np.argsort(np.concatenate(turns))
  return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2)[:, :, order], *found)


class TwoParts(Pattern):
  """A pattern of near keys and far ones, which have no key in common; each part is cut in small dense attentions.

  Merged, a head weighs both together. `split`, heads take turns: the first sees near keys, the second far ones, and so
  on (Child et al. 2019, section 4.3: merged heads, and heads in parallel); what has nothing far yet finds 0. Far keys
  may be of several kinds, which the heads that see them take turns with.
  """

  split: bool

  def _of_both(self, near: float | int, far: float | int) -> float | int:
    """Keys that a head sees, on the average over heads."""
    return (near + far) / 2 if self.split else near + far

  def visible(self) -> tuple[masks.Mask, Sequence[masks.Mask]]:
    """What is near, and the kinds of what is far, without the mask."""
    raise NotImplementedError

  def parts(self) -> tuple[Attend, Sequence[Attend]]:
    """The same as attention of whole rows, under the mask."""
    raise NotImplementedError

  def _attended(self, *given):
    query, key = given[:2]
    reading = query.shape[1] != key.shape[1]  # from a cache
    dense: Callable[[masks.Mask], Attend] = lambda seen: Dense(self.mask & seen).attend
    own, kinds = self.visible()
    if reading and not self.split:
      return _by_head([dense(own | kind) for kind in kinds], *given)
    near, far = (dense(own), [dense(kind) for kind in kinds]) if reading else self.parts()
    if not self.split:
      return joined([near(*given), _by_head(far, *given)])
    found, sums = _by_head([near, functools.partial(_by_head, far)], *given)
    sees = sums > jnp.finfo(jnp.float32).min / 2
    return jnp.where(sees[..., None], found, 0), sums


@dataclasses.dataclass(frozen=True)
class Strided(TwoParts):
  """The last `stride` keys, and of those before every one whose distance is a multiple of it (Sparse Transformer).

  The far ones are a small attention among tokens of the same place in their blocks: T^2 / stride scores in all.
  """

  stride: int
  split: bool = False
  mask: masks.Mask = masks.Causal()

  def __post_init__(self) -> None:
    if self.stride < 1:
      raise ValueError(f'stride = {self.stride} must be at least 1')

  def _seen_at_most(self, length):
    return self._of_both(min(self.stride, length), length // self.stride)

  def _seen_causally(self, length):
    return self._of_both(Banded(self.stride).keys_seen(length, causal=True), _blocks_before(length, self.stride))

  def visible(self):
    return masks.Band(self.stride), [masks.Column(self.stride) & ~masks.Band(self.stride)]

  def parts(self):
    stride, far = self.stride, Dense(self.mask & ~masks.Band(self.stride))
    cut = lambda x: _blocks(x, stride).swapaxes(1, 2).reshape(x.shape[0] * stride, -1, *x.shape[2:])
    apart = lambda x: x.reshape(-1, stride, *x.shape[1:]).swapaxes(1, 2)
    whole = lambda x: apart(x).reshape(x.shape[0] // stride, -1, *x.shape[2:])
    return Banded(stride, self.mask).attend, [functools.partial(_cut, far, cut, whole)]


@dataclasses.dataclass(frozen=True)
class Fixed(TwoParts):
  """The keys of a query's own block, and the last `summary` of every other block (Sparse Transformer).

  With several `summaries`, heads take turns: the first reads the last `summary` keys of blocks, the second those before
  them, and so on.
  """

  block: int
  summary: int = 1
  summaries: int = 1
  split: bool = False
  mask: masks.Mask = masks.Causal()

  def __post_init__(self) -> None:
    if min(self.block, self.summary, self.summaries) < 1 or self.summary * self.summaries > self.block:
      raise ValueError(f'{self.summaries} summaries of {self.summary} keys do not fit in a block of {self.block}')

  def _seen_at_most(self, length):
    return self._of_both(min(self.block, length), self.summary * (length // self.block))

  def _seen_causally(self, length):
    whole, rest = divmod(length, self.block)
    own = (whole * self.block * (self.block + 1) + rest * (rest + 1)) / (2 * length)
    return self._of_both(own, self.summary * _blocks_before(length, self.block))

  def visible(self):
    own = masks.Block(self.block)
    return own, [masks.Places(self.block, *of) & ~own for of in self._places()]

  def parts(self):
    def own(query, *rest):
      cut = lambda x: _blocks(x, self.block).reshape(-1, self.block, *x.shape[2:])
      whole = lambda x: x.reshape(query.shape[0], -1, *x.shape[2:])
      return _cut(Dense(self.mask), cut, whole, query, *rest)

    return own, [functools.partial(self._others, of) for of in self._places()]

  def _places(self) -> list[tuple[int, int]]:
    """Places in a block that a kind of heads reads, from and up to."""
    ends = [self.block - number * self.summary for number in range(self.summaries)]
    return [(end - self.summary, end) for end in ends]

  def _others(self, places, query, key, value, queries, keys, *how) -> Attended:
    some = lambda x: _blocks(x, self.block)[:, :, slice(*places)].reshape(x.shape[0], -1, *x.shape[2:])
    others = Dense(self.mask & ~masks.Block(self.block))
    return others.attend(query, some(key), some(value), queries, jax.tree.map(some, keys), *how)
