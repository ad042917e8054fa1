"""Grouped-query attention, its patterns, and the cache of what was read."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from gpt_jax.models import masks
from gpt_jax.models.positions import Alibi
from gpt_jax.types import Layout

LEAST_HALVED = 128
"""Tokens of a row from which halving pays."""

Drop = Callable[[jax.Array], jax.Array]
"""Dropout of attention weights."""


def softmax_attention(
  query: Float[Array, 'B T N H'],
  key: Float[Array, 'B S K H'],
  value: Float[Array, 'B S K H'],
  visible: Bool[Array, 'B T S'],
  bias: Float[Array, 'B N T S'] | None = None,
  drop: Drop | None = None,
) -> Float[Array, 'B T N H']:
  """softmax(q k / sqrt(H) + bias) v, where N query heads share K key heads.

  K = N is multi-head, K = 1 multi-query, between them grouped-query attention (Ainslie et al. 2023). A query that sees
  nothing weighs all keys alike: its output means nothing and must be weighted 0.
  """
  batch, length, heads, width = query.shape
  grouped = query.reshape(batch, length, key.shape[2], -1, width).transpose(0, 2, 3, 1, 4) * width**-0.5
  key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
  if bias is None and drop is None:
    out = _attend(grouped, key, value, visible)
  else:
    weights = _weights(grouped, key, visible, bias).astype(value.dtype)
    out = _mix(weights if drop is None else drop(weights), value)
  return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width)


def _weights(
  query: Float[Array, 'B K G T H'],
  key: Float[Array, 'B K S H'],
  visible: Bool[Array, 'B T S'],
  bias: Float[Array, 'B N T S'] | None = None,
) -> Float[Array, 'B K G T S']:
  scores = jnp.einsum('BKGTH,BKSH->BKGTS', query, key, preferred_element_type=jnp.float32)
  if bias is not None:
    scores += bias.reshape(scores.shape)
  return jax.nn.softmax(jnp.where(visible[:, None, None], scores, jnp.finfo(jnp.float32).min))


def _mix(weights: Float[Array, 'B K G T S'], value: Float[Array, 'B K S H']) -> Float[Array, 'B K G T H']:
  mixed = jnp.einsum('BKGTS,BKSH->BKGTH', weights, value, preferred_element_type=jnp.float32)
  return mixed.astype(value.dtype)


@jax.custom_vjp
def _attend(
  query: Float[Array, 'B K G T H'],
  key: Float[Array, 'B K S H'],
  value: Float[Array, 'B K S H'],
  visible: Bool[Array, 'B T S'],
) -> Float[Array, 'B K G T H']:
  """Attention whose backward pass sums over H where the derivative of a softmax would over S (FlashAttention, B.2)."""
  return _attend_forward(query, key, value, visible)[0]


def _attend_forward(query: jax.Array, key: jax.Array, value: jax.Array, visible: jax.Array) -> tuple[jax.Array, Any]:
  weights = _weights(query, key, visible).astype(value.dtype)
  out = _mix(weights, value)
  return out, (query, key, value, weights, out)


def _attend_backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
  query, key, value, weights, out = kept
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  along = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
  scores = (weights * (product('BKGTH,BKSH->BKGTS', gradient, value) - along)).astype(query.dtype)
  return (
    product('BKGTS,BKSH->BKGTH', scores, key).astype(query.dtype),
    product('BKGTS,BKGTH->BKSH', scores, query).astype(key.dtype),
    product('BKGTS,BKGTH->BKSH', weights, gradient).astype(value.dtype),
    None,
  )


_attend.defvjp(_attend_forward, _attend_backward)


@dataclasses.dataclass(frozen=True)
class Dense:
  """Every query weighs every key that the mask lets it see.

  Where nobody looks ahead, the first half of a row is not compared with the second: a quarter of the work saved.
  """

  mask: masks.Mask = masks.Causal()

  def keys_seen(self, length: int) -> int:
    """Keys in a query's row, the causal half not taken off: what utilisation counts."""
    return length

  def __call__(
    self,
    query: Float[Array, 'B T N H'],
    key: Float[Array, 'B S K H'],
    value: Float[Array, 'B S K H'],
    queries: Layout,
    keys: Layout,
    bias: Alibi | None = None,
    drop: Drop | None = None,
  ) -> Float[Array, 'B T N H']:
    def attend(asking: slice, asked: slice) -> Float[Array, 'B _ N H']:
      some, others = jax.tree.map(lambda x: x[:, asking], queries), jax.tree.map(lambda x: x[:, asked], keys)
      visible = (self.mask & masks.SameSegment())(some, others)
      scores = None if bias is None else bias(some, others, *query.shape[2:])
      return softmax_attention(query[:, asking], key[:, asked], value[:, asked], visible, scores, drop)

    length = query.shape[1]
    if length != key.shape[1] or self.mask.looks_ahead or length < LEAST_HALVED:
      return attend(slice(None), slice(None))
    first, second = slice(length // 2), slice(length // 2, None)
    return jnp.concatenate([attend(first, first), attend(second, slice(None))], axis=1)


@dataclasses.dataclass(frozen=True)
class Banded:
  """Every query weighs the `width` nearest keys: time and memory grow with T * width (GPT-3's locally banded layers).

  The row is cut in blocks of `width`; the queries of a block can see only the block before, their own and, under a mask
  that looks ahead, the one after. So each block is a small dense attention of its own, under the same mask.
  """

  width: int
  mask: masks.Mask = masks.Causal()

  def keys_seen(self, length: int) -> int:
    """Keys in the band of a query, on one side: what utilisation counts."""
    return min(self.width, length)

  def __call__(
    self,
    query: Float[Array, 'B T N H'],
    key: Float[Array, 'B S K H'],
    value: Float[Array, 'B S K H'],
    queries: Layout,
    keys: Layout,
    bias: Alibi | None = None,
    drop: Drop | None = None,
  ) -> Float[Array, 'B T N H']:
    dense = Dense(self.mask & masks.Band(self.width))
    batch, length = query.shape[:2]
    if length != key.shape[1] or length <= self.width:  # reading from a cache, or nothing to save
      return dense(query, key, value, queries, keys, bias, drop)
    neighbours = (-1, 0, 1) if self.mask.looks_ahead else (-1, 0)

    def blocks(x: jax.Array) -> jax.Array:
      x = jnp.pad(x, [(0, 0), (0, -length % self.width)] + [(0, 0)] * (x.ndim - 2))
      return x.reshape(batch, -1, self.width, *x.shape[2:])

    def around(x: jax.Array) -> jax.Array:
      x = blocks(x)
      padded = jnp.pad(x, [(0, 0), (1, 1)] + [(0, 0)] * (x.ndim - 2))
      parts = [padded[:, 1 + n : 1 + n + x.shape[1]] for n in neighbours]
      return fold(jnp.concatenate(parts, axis=2))

    fold = lambda x: x.reshape(-1, *x.shape[2:])
    cut = lambda x: fold(blocks(x))
    out = dense(
      cut(query), around(key), around(value), jax.tree.map(cut, queries), jax.tree.map(around, keys), bias, drop
    )
    return out.reshape(batch, -1, *query.shape[2:])[:, :length]


@struct.dataclass
class KeyValues:
  """What one layer has read: keys already turned by their positions. Stacked layers have a leading axis.

  A head's lie together: the other way round, products with them would first copy all of them, at every step.
  """

  key: Float[Array, '... B K S H']
  value: Float[Array, '... B K S H']

  def write(self, at: Int[Array, 'B'], key: Float[Array, 'B T K H'], value: Float[Array, 'B T K H']) -> 'KeyValues':
    put = lambda old, new: written(old, new.swapaxes(1, 2), at, axis=2)
    return KeyValues(put(self.key, key), put(self.value, value))

  def read(self) -> tuple[Float[Array, 'B S K H'], Float[Array, 'B S K H']]:
    """Keys and values of one layer as attention takes them."""
    return self.key.swapaxes(1, 2), self.value.swapaxes(1, 2)


@struct.dataclass
class Cache:
  """What the model has read: keys and values of every layer, and where their tokens stand.

  Slots not yet written have segment 0, which no mask lets anyone see; so decoding needs no mask of its own.
  """

  layers: tuple[KeyValues, ...]
  layout: Layout
  length: Int[Array, 'B']
  """Tokens read of each row: the slot that the next is written to."""

  def rewound(self, length: Int[Array, 'B']) -> 'Cache':
    """The same with the first `length` tokens of each row alone."""
    kept = jnp.arange(self.layout.segment.shape[1]) < length[:, None]
    return Cache(self.layers, dataclasses.replace(self.layout, segment=jnp.where(kept, self.layout.segment, 0)), length)

  def extend_layout(self, layout: Layout) -> Layout:
    return jax.tree.map(lambda old, new: written(old, new, self.length), self.layout, layout)


def written(
  old: Shaped[Array, 'B *S'], new: Shaped[Array, 'B *T'], at: Int[Array, 'B'], axis: int = 1
) -> Shaped[Array, 'B *S']:
  """The old rows with the new ones in slots `at` and after, along `axis`; they must fit."""
  write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=axis - 1)
  return jax.vmap(write)(old, new.astype(old.dtype), at)
