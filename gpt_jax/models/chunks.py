"""softmax(q k) v a chunk of a row at a time: memory grows with the row and not with its square."""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
import numpy as np

from gpt_jax.models.masks import Mask, Reach
from gpt_jax.models.softmax import LEAST, Attended, Bias, along, flat, grouped, product
from gpt_jax.types import Layout

CHUNK = 512
"""Places of a row whose scores exist at once, where a mask does not say that fewer do."""

MOST_SCORES = 1 << 20
"""Scores that exist at once, as far as rows can be taken one after another."""


@dataclasses.dataclass(frozen=True)
class Chunks:
  """How a row of queries is cut, and which keys each piece is compared with: `steps[i]` chunks from `first[i]`.

  Where a mask has a reach, these keys are a window that moves along the row.
  """

  queries: int
  """Queries of a piece."""
  keys: int
  """Keys of a chunk."""
  front: int
  """Slots before the first key, so that the first window is as long as others."""
  first: tuple[int, ...]
  steps: tuple[int, ...]

  @classmethod
  def of(cls, length: int, others: int, reach: Reach) -> 'Chunks':
    """Of `length` queries and `others` keys; `reach` is a mask's, of two rows that are one."""
    back, ahead = reach
    window = back + ahead + 1 < others
    span = int(back + ahead) if window else 0
    queries = min(CHUNK, _up(length, 64), max(64, _power_of_two(span // 2)) if window else CHUNK)
    whole = _up(queries + span, 64)
    keys = whole if window and whole <= 2 * CHUNK else min(CHUNK, _up(others, 64))
    starts = np.arange(0, length, queries)
    first, front = (starts, int(back)) if window else (0 * starts, 0)
    ends = front + np.minimum(starts + queries + ahead, others)
    steps = np.maximum(-(-(ends - first) // keys), 0)
    return cls(queries, keys, front, tuple(first.astype(int).tolist()), tuple(steps.astype(int).tolist()))

  @property
  def slots(self) -> int:
    """Slots that keys are put in."""
    return max(first + steps * self.keys for first, steps in zip(self.first, self.steps, strict=True))


def _up(x: int, multiple: int) -> int:
  return -(-x // multiple) * multiple


def _power_of_two(x: int) -> int:
  """The least that is not below x."""
  return 1 << max(x - 1, 0).bit_length()


def chunked(
  query: Float[Array, 'B T N H'],
  key: Float[Array, 'B S K H'],
  value: Float[Array, 'B S K H'],
  queries: Layout,
  keys: Layout,
  mask: Mask,
  bias: Bias | None = None,
) -> Attended:
  """`softmax_attention` under a mask, a chunk of queries against a chunk of keys at a time, and so its backward pass.

  The softmax is summed up on the way and scores are computed again for gradients (FlashAttention, algorithms 1 and 4).
  What no query of a chunk can see is not computed, be it known from the mask's reach or found in the layouts. A query
  that sees nothing finds something finite that means nothing, and its sum is about the least number.
  """
  batch, length, heads = query.shape[:3]
  others = key.shape[1]
  chunks = Chunks.of(length, others, mask.reach if length == others else (math.inf, math.inf))
  slots = (chunks.front, max(chunks.slots - chunks.front - others, 0))
  query, key, value = grouped(query, key, value)
  given = (
    _padded(query, 3, (0, -length % chunks.queries)),
    _padded(key, 2, slots),
    _padded(value, 2, slots),
    jax.tree.map(lambda x: _padded(x, 1, (0, -length % chunks.queries)), queries),
    jax.tree.map(lambda x: _padded(x, 1, slots), keys),
  )
  attend = functools.partial(_attend_chunks, (chunks, mask, bias))
  rows = _rows_at_once(batch, heads * chunks.queries * chunks.keys)
  if rows == batch:
    found = attend(*given)
  else:
    apart = lambda x: x.reshape(rows, -1, *x.shape[1:]).swapaxes(0, 1)
    together = lambda x: x.swapaxes(0, 1).reshape(batch, *x.shape[2:])
    found = jax.tree.map(together, jax.lax.map(lambda some: attend(*some), jax.tree.map(apart, given)))
  return jax.tree.map(lambda x: x[:, :length], flat(found))


def _padded(x: Shaped[Array, '...'], axis: int, around: tuple[int, int]) -> Shaped[Array, '...']:
  """With slots before and after that hold zeros: of a layout no segment, which nobody sees."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = around
  return jnp.pad(x, widths)


def _rows_at_once(batch: int, scores: int) -> int:
  """The most rows, a divisor of the batch, of which so many scores each are not too many."""
  return max(rows for rows in range(1, batch + 1) if batch % rows == 0 and (rows == 1 or rows * scores <= MOST_SCORES))


How = tuple[Chunks, Mask, Bias | None]

_cut = jax.lax.dynamic_slice_in_dim


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_chunks(
  how: How,
  query: Float[Array, 'B K G T H'],
  key: Float[Array, 'B K S H'],
  value: Float[Array, 'B K S H'],
  queries: Layout,
  keys: Layout,
) -> tuple[Float[Array, 'B K G T H'], Float[Array, 'B K G T']]:
  return _chunks_forward(how, query, key, value, queries, keys)[0]


def _scores(how: How, query: jax.Array, keys_across: jax.Array, queries: Layout, keys: Layout, start: jax.Array) -> Any:
  """Of a piece of queries, scores for the chunk of keys from `start`, and which of them count."""
  chunks, mask, bias = how
  asked = jax.tree.map(lambda x: _cut(x, start, chunks.keys, 1), keys)
  scores = lambda: product('BKGTH,BKHS->BKGTS', query, _cut(keys_across, start, chunks.keys, 3))
  if bias is not None:
    heads, width = query.shape[1] * query.shape[2], query.shape[-1]
    plain = scores
    scores = lambda: plain() + bias(queries, asked, heads, width).reshape(*query.shape[:-1], -1)
  return scores, mask(queries, asked)[:, None, None]


def _by_pieces(chunks: Chunks, *arrays: tuple[Any, int]) -> tuple[jax.Array, jax.Array, list[Any]]:
  """Of every piece of queries, what is scanned over: its first key, its steps, its part of arrays along an axis."""

  def pieces(x: jax.Array, axis: int) -> jax.Array:
    return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, chunks.queries, *x.shape[axis + 1 :]), axis, 0)

  parts = [jax.tree.map(functools.partial(pieces, axis=axis), tree) for tree, axis in arrays]
  return jnp.array(chunks.first), jnp.array(chunks.steps), parts


def _whole(x: Shaped[Array, 'P B K G ...']) -> Shaped[Array, 'B K G ...']:
  """Pieces of queries, again in one row."""
  x = jnp.moveaxis(x, 0, 3)
  return x.reshape(*x.shape[:3], -1, *x.shape[5:])


def _over_keys(chunks: Chunks, first: jax.Array, steps: jax.Array, visit: Callable[[jax.Array, Any], Any], carry: Any):
  """Visits the chunks of a piece; where all have the same number, XLA is told so."""
  number = chunks.steps[0] if len(set(chunks.steps)) == 1 else steps
  return jax.lax.fori_loop(0, number, lambda step, carry: visit(first + step * chunks.keys, carry), carry)


def _where_any(chunks: Chunks, visible: jax.Array, compute: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
  """What is computed of a chunk of which something is seen; a window that is all there is always has something."""
  return compute() if max(chunks.steps) == 1 else jax.lax.cond(jnp.any(visible), compute, otherwise)


def _chunks_forward(how: How, query, key, value, queries, keys) -> tuple[Any, Any]:
  chunks, across = how[0], key.swapaxes(2, 3)

  def piece(given: Any) -> tuple[jax.Array, jax.Array]:
    first, steps, (query, queries) = given

    def visit(start: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
      scores, visible = _scores(how, query, across, queries, keys, start)
      out, most, total = carry

      def compute() -> tuple[jax.Array, jax.Array, jax.Array]:
        seen = jnp.where(visible, scores(), LEAST)
        higher = jnp.maximum(most, jnp.max(seen, axis=-1))
        parts = jnp.exp(seen - higher[..., None])
        kept = jnp.exp(most - higher)
        mixed = product('BKGTS,BKSH->BKGTH', parts.astype(value.dtype), _cut(value, start, chunks.keys, 2))
        return out * kept[..., None] + mixed, higher, total * kept + jnp.sum(parts, axis=-1)

      return _where_any(chunks, visible, compute, lambda: carry)

    zeros = jnp.zeros(query.shape[:-1], jnp.float32)
    nothing = (jnp.zeros(query.shape, jnp.float32), zeros + LEAST, zeros)
    out, most, total = _over_keys(chunks, first, steps, visit, nothing)
    total = jnp.maximum(total, np.finfo(np.float32).tiny)
    return (out / total[..., None]).astype(value.dtype), most + jnp.log(total)

  out, sums = map(_whole, jax.lax.map(piece, _by_pieces(chunks, (query, 3), (queries, 1))))
  return (out, sums), (query, key, value, queries, keys, out, sums)


def _chunks_backward(how: How, kept: Any, gradients: tuple[jax.Array, jax.Array]) -> Any:
  query, key, value, queries, keys, out, sums = kept
  chunks, gradient = how[0], gradients[0]
  shared = along(out, *gradients)
  across, values_across = key.swapaxes(2, 3), value.swapaxes(2, 3)
  add = lambda whole, part, start: jax.lax.dynamic_update_slice_in_dim(
    whole, _cut(whole, start, chunks.keys, 3) + part, start, 3
  )

  def piece(carry: tuple[jax.Array, jax.Array], given: Any) -> tuple[Any, jax.Array]:
    first, steps, (query, gradient, queries, sums, shared) = given

    def visit(start: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
      scores, visible = _scores(how, query, across, queries, keys, start)

      def compute() -> tuple[jax.Array, jax.Array, jax.Array]:
        weights = jnp.where(visible, jnp.exp(scores() - sums[..., None]), 0)
        of_weights = product('BKGTH,BKHS->BKGTS', gradient, _cut(values_across, start, chunks.keys, 3))
        of_scores = (weights * (of_weights - shared[..., None])).astype(query.dtype)
        return (
          product('BKGTS,BKSH->BKGTH', of_scores, _cut(key, start, chunks.keys, 2)),
          product('BKGTS,BKGTH->BKHS', of_scores, query),
          product('BKGTS,BKGTH->BKHS', weights.astype(query.dtype), gradient),
        )

      zeros = lambda x, length: jnp.zeros((*x.shape[:-1], length), jnp.float32)
      nothing = lambda: (zeros(query, query.shape[-1]), zeros(across, chunks.keys), zeros(values_across, chunks.keys))
      of_query, of_key, of_value = carry
      more, more_of_key, more_of_value = _where_any(chunks, visible, compute, nothing)
      return of_query + more, add(of_key, more_of_key, start), add(of_value, more_of_value, start)

    begun = (jnp.zeros(query.shape, jnp.float32), *carry)
    of_query, *carry = _over_keys(chunks, first, steps, visit, begun)
    return tuple(carry), of_query.astype(query.dtype)

  nothing = (jnp.zeros(across.shape, jnp.float32), jnp.zeros(values_across.shape, jnp.float32))
  arrays = _by_pieces(chunks, (query, 3), (gradient, 3), (queries, 1), (sums, 3), (shared, 3))
  (of_key, of_value), of_query = jax.lax.scan(piece, nothing, arrays)
  back = lambda x, like: x.swapaxes(2, 3).astype(like.dtype)
  return _whole(of_query), back(of_key, key), back(of_value, value), None, None


_attend_chunks.defvjp(_chunks_forward, _chunks_backward)
