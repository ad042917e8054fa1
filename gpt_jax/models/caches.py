"""The cache of what a model has read: keys and values of each layer, all of them or a ring of the last."""

import dataclasses
import functools

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from gpt_jax.types import Layout

SPARE = 128
"""Slots of a ring beyond what its pattern sees."""


@struct.dataclass
class KeyValues:
  """What one layer has read: keys already turned by their positions. Stacked layers have a leading axis.

  A head's lie together: the other way round, products with them would first copy all of them, at every step.
  """

  key: Float[Array, '... B K S H']
  value: Float[Array, '... B K S H']

  @property
  def slots(self) -> int:
    return self.key.shape[-2]

  def is_ring(self, text: Layout) -> bool:
    """Whether there are fewer slots than places in the text."""
    return self.slots < text.order.shape[1]

  def extended(
    self,
    at: Int[Array, 'B'],
    key: Float[Array, 'B T K H'],
    value: Float[Array, 'B T K H'],
    queries: Layout,
    text: Layout,
    kept: int | None,
  ) -> tuple['KeyValues', Float[Array, 'B S K H'], Float[Array, 'B S K H'], Layout]:
    """One layer with new tokens at `at` and after; and what they are compared with, keys, values and their layout.

    `text` is the layout of all, the new ones among them; `kept`, how many of the last keys a query may see, None: all.
    In a ring the token at place p is in slot p % slots, over the one that no query can see any more. So many tokens
    that they would take each other's window away are compared with what was held before and with themselves, and the
    last are kept.
    """
    new = KeyValues(key.swapaxes(1, 2), value.swapaxes(1, 2))
    count = key.shape[1]
    if not self.is_ring(text):
      held = jax.tree.map(lambda old, new: written(old, new, at, axis=2), self, new)
      return held, *held._read(), text
    assert kept is not None, 'a ring is of a pattern that sees no more than the last tokens'
    if count <= (self.slots - kept) // 2:
      held = self.put(new, at, jnp.full_like(at, count))
      return held, *held._read(), _in_slots(text, at + count, self.slots)
    before = _in_slots(text, at, self.slots)
    both = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=2), self, new)
    layout = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=1), before, queries)
    return self.put(new, at, jnp.sum(queries.segment > 0, axis=1)), *both._read(), layout

  def moved(self, places: Int[Array, 'B T'], at: Int[Array, 'B'], text: Layout) -> 'KeyValues':
    """One layer in which what stands at these places of the text stands at `at` and after."""
    index = (places % self.slots)[:, None, :, None]
    new = jax.tree.map(lambda x: jnp.take_along_axis(x, index, axis=2), self)
    if self.is_ring(text):
      return self.put(new, at, jnp.full_like(at, places.shape[1]))
    return jax.tree.map(lambda old, new: written(old, new, at, axis=2), self, new)

  def put(self, new: 'KeyValues', at: Int[Array, 'B'], count: Int[Array, 'B']) -> 'KeyValues':
    """A ring with the first `count` of new tokens at `at` and after, or as many of the last of them as it holds."""
    if new.slots == 1:
      return jax.tree.map(lambda old, one: written(old, one, at % self.slots, axis=2), self, new)
    from_new = _newest(at + count, self.slots) - at[:, None]
    index = jnp.maximum(from_new, 0)[:, None, :, None]
    place = lambda old, new: jnp.where(
      from_new[:, None, :, None] < 0, old, jnp.take_along_axis(new.astype(old.dtype), index, axis=2)
    )
    return jax.tree.map(place, self, new)

  def _read(self) -> tuple[Float[Array, 'B S K H'], Float[Array, 'B S K H']]:
    """Keys and values of one layer as attention takes them."""
    return self.key.swapaxes(1, 2), self.value.swapaxes(1, 2)


def _newest(end: Int[Array, 'B'], slots: int) -> Int[Array, 'B S']:
  """The place of the last token before `end` that belongs in each slot of a ring; below 0 where there was none."""
  last = end[:, None] - 1
  return last - (last - jnp.arange(slots)) % slots


def _in_slots(text: Layout, end: Int[Array, 'B'], slots: int) -> Layout:
  """The layout of a ring that has read a text up to `end`."""
  places = _newest(end, slots)
  found = jax.tree.map(lambda x: jnp.take_along_axis(x, jnp.maximum(places, 0), axis=1), text)
  return dataclasses.replace(found, segment=jnp.where(places < 0, 0, found.segment))


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
