"""Grouped-query attention, its patterns, and the cache of what was read."""

from collections.abc import Callable
import dataclasses

from flax import struct
from gpt_jax.models import masks
from gpt_jax.models.positions import Alibi
from gpt_jax.types import Layout
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

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
  kv_heads = key.shape[2]
  query = query.reshape(*query.shape[:2], kv_heads, -1, query.shape[-1])
  scores = jnp.einsum('BTKGH,BSKH->BKGTS', query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
  if bias is not None:
    scores += bias.reshape(scores.shape)
  scores = jnp.where(visible[:, None, None], scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores).astype(value.dtype)
  if drop is not None:
    weights = drop(weights)
  out = jnp.einsum('BKGTS,BSKH->BTKGH', weights, value)
  return out.reshape(*out.shape[:2], -1, out.shape[-1])


@dataclasses.dataclass(frozen=True)
class Dense:
  """Every query weighs every key that the mask lets it see."""

  mask: masks.Mask = masks.Causal()

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
    visible = (self.mask & masks.SameSegment())(queries, keys)
    scores = None if bias is None else bias(queries, keys, query.shape[2])
    return softmax_attention(query, key, value, visible, scores, drop)


@dataclasses.dataclass(frozen=True)
class Banded:
  """Every query weighs the `width` nearest keys: time and memory grow with T * width (GPT-3's locally banded layers).

  The row is cut in blocks of `width`; the queries of a block can see only the block before, their own and, under a mask
  that looks ahead, the one after. So each block is a small dense attention of its own, under the same mask.
  """

  width: int
  mask: masks.Mask = masks.Causal()

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
  """What one layer has read: keys already turned by their positions. Stacked layers have a leading axis."""

  key: Float[Array, '... B S K H']
  value: Float[Array, '... B S K H']

  def write(self, at: Int[Array, ''], key: Float[Array, 'B T K H'], value: Float[Array, 'B T K H']) -> 'KeyValues':
    return KeyValues(_write(self.key, key, at), _write(self.value, value, at))


@struct.dataclass
class Cache:
  """What the model has read: keys and values of every layer, and where their tokens stand.

  Slots not yet written have segment 0, which no mask lets anyone see; so decoding needs no mask of its own.
  """

  layers: tuple[KeyValues, ...]
  layout: Layout
  length: Int[Array, '']

  def extend_layout(self, layout: Layout) -> Layout:
    return jax.tree.map(lambda old, new: _write(old, new, self.length), self.layout, layout)


def _write(old: jax.Array, new: jax.Array, at: Int[Array, '']) -> jax.Array:
  return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), at, axis=1)
