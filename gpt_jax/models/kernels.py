"""How softmax(q k) v is computed under a mask: plainly, in chunks of a row, or by a device's own kernel."""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped
import numpy as np

from gpt_jax.models.masks import Mask, Reach, SameSegment
from gpt_jax.models.spread import each_its_own
from gpt_jax.types import Layout

Drop = Callable[[jax.Array], jax.Array]
"""Dropout of attention weights."""

Bias = Callable[[Layout, Layout, int, int], Float[Array, 'B N T S']]
"""What is added to scores, of two layouts, the number of heads and their width; Alibi is one."""

Attended = tuple[Float[Array, 'B T N H'], Float[Array, 'B T N']]
"""What queries found among some keys, and the logarithm of the sum of the exponentials of their scores."""

# ---- plainly: all scores at once -----------------------------------------------------------------------------------


def softmax_attention(
  query: Float[Array, 'B T N H'],
  key: Float[Array, 'B S K H'],
  value: Float[Array, 'B S K H'],
  visible: Bool[Array | np.ndarray, 'B T S'],
  bias: Float[Array, 'B N T S'] | None = None,
  drop: Drop | None = None,
) -> Attended:
  """softmax(q k / sqrt(H) + bias) v, where N query heads share K key heads; and the softmax's sums, see `Attended`.

  K = N is multi-head, K = 1 multi-query, between them grouped-query attention (Ainslie et al. 2023). A query that sees
  nothing weighs all keys alike: its output means nothing and must be weighted 0, and its sum is the least number.
  """
  query, key, value = _grouped(query, key, value)
  if bias is None and drop is None:
    return _flat(_attend(query, key, value, visible))
  weights, sums = _weights(query, key, visible, bias)
  weights = weights.astype(value.dtype)
  return _flat((_mix(weights if drop is None else drop(weights), value), sums))


def _grouped(query: Float[Array, 'B T N H'], *shared: Float[Array, 'B S K H']) -> list[jax.Array]:
  """Scaled queries [B, K, G, T, H], and keys and values [B, K, S, H]."""
  batch, length, _, width = query.shape
  query = query.reshape(batch, length, shared[0].shape[2], -1, width).transpose(0, 2, 3, 1, 4) * width**-0.5
  return [query, *(x.swapaxes(1, 2) for x in shared)]


def _flat(found: Any) -> Any:
  """Of arrays [B, K, G, T, ...] the same as [B, T, N, ...]."""
  flat = lambda x: jnp.moveaxis(x, 3, 1).reshape(x.shape[0], x.shape[3], -1, *x.shape[4:])
  return jax.tree.map(flat, found)


def _weights(
  query: Float[Array, 'B K G T H'],
  key: Float[Array, 'B K S H'],
  visible: Bool[Array | np.ndarray, 'B T S'],
  bias: Float[Array, 'B N T S'] | None = None,
) -> tuple[Float[Array, 'B K G T S'], Float[Array, 'B K G T']]:
  scores = jnp.einsum('BKGTH,BKSH->BKGTS', query, key, preferred_element_type=jnp.float32)
  if bias is not None:
    scores += bias.reshape(scores.shape)
  scores = jnp.where(visible[:, None, None], scores, LEAST)
  most = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  parts = jnp.exp(scores - most)
  total = jnp.sum(parts, axis=-1, keepdims=True)
  return parts / total, (most + jnp.log(total))[..., 0]


LEAST = float(np.finfo(np.float32).min)
"""The score of a key that a query may not see."""


def _mix(weights: Float[Array, 'B K G T S'], value: Float[Array, 'B K S H']) -> Float[Array, 'B K G T H']:
  mixed = jnp.einsum('BKGTS,BKSH->BKGTH', weights, value, preferred_element_type=jnp.float32)
  return mixed.astype(value.dtype)


@jax.custom_vjp
def _attend(
  query: Float[Array, 'B K G T H'],
  key: Float[Array, 'B K S H'],
  value: Float[Array, 'B K S H'],
  visible: Bool[Array | np.ndarray, 'B T S'],
) -> tuple[Float[Array, 'B K G T H'], Float[Array, 'B K G T']]:
  """Attention whose backward pass sums over H where the derivative of a softmax would over S (FlashAttention, B.2)."""
  return _attend_forward(query, key, value, visible)[0]


def _attend_forward(query: jax.Array, key: jax.Array, value: jax.Array, visible: Any) -> tuple[Any, Any]:
  weights, sums = _weights(query, key, visible)
  weights = weights.astype(value.dtype)
  out = _mix(weights, value)
  return (out, sums), (query, key, value, weights, out)


def _attend_backward(kept: Any, gradients: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array, None]:
  (query, key, value, weights, out), (gradient, of_sums) = kept, gradients
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  along = _along(out, gradient, of_sums)[..., None]
  scores = (weights * (product('BKGTH,BKSH->BKGTS', gradient, value) - along)).astype(query.dtype)
  return (
    product('BKGTS,BKSH->BKGTH', scores, key).astype(query.dtype),
    product('BKGTS,BKGTH->BKSH', scores, query).astype(key.dtype),
    product('BKGTS,BKGTH->BKSH', weights, gradient).astype(value.dtype),
    None,
  )


_attend.defvjp(_attend_forward, _attend_backward)


def _along(
  out: Float[Array, '*B T H'], gradient: Float[Array, '*B T H'], of_sums: Float[Array, '*B T']
) -> Float[Array, '*B T']:
  """What all scores of a query have in common of their gradient."""
  return jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1) - of_sums


# ---- in chunks: memory grows with T and not with its square --------------------------------------------------------

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
    if back + ahead + 1 >= others:
      back = math.inf
    span = 0 if math.isinf(back + ahead) else int(back + ahead)
    queries = min(CHUNK, _up(length, 64), max(64, _power_of_two(span // 2)) if span else CHUNK)
    window = _up(queries + span, 64)
    keys = window if span and window <= 2 * CHUNK else min(CHUNK, _up(others, 64))
    starts = np.arange(0, length, queries)
    first, front = (starts, int(back)) if span else (0 * starts, 0)
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
  query, key, value = _grouped(query, key, value)
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
  return jax.tree.map(lambda x: x[:, :length], _flat(found))


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
_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


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
  scores = lambda: _product('BKGTH,BKHS->BKGTS', query, _cut(keys_across, start, chunks.keys, 3))
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
        mixed = _product('BKGTS,BKSH->BKGTH', parts.astype(value.dtype), _cut(value, start, chunks.keys, 2))
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
  along = _along(out, *gradients)
  across, values_across = key.swapaxes(2, 3), value.swapaxes(2, 3)
  add = lambda whole, part, start: jax.lax.dynamic_update_slice_in_dim(
    whole, _cut(whole, start, chunks.keys, 3) + part, start, 3
  )

  def piece(carry: tuple[jax.Array, jax.Array], given: Any) -> tuple[Any, jax.Array]:
    first, steps, (query, gradient, queries, sums, along) = given

    def visit(start: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
      scores, visible = _scores(how, query, across, queries, keys, start)

      def compute() -> tuple[jax.Array, jax.Array, jax.Array]:
        weights = jnp.where(visible, jnp.exp(scores() - sums[..., None]), 0)
        of_weights = _product('BKGTH,BKHS->BKGTS', gradient, _cut(values_across, start, chunks.keys, 3))
        of_scores = (weights * (of_weights - along[..., None])).astype(query.dtype)
        return (
          _product('BKGTS,BKSH->BKGTH', of_scores, _cut(key, start, chunks.keys, 2)),
          _product('BKGTS,BKGTH->BKHS', of_scores, query),
          _product('BKGTS,BKGTH->BKHS', weights.astype(query.dtype), gradient),
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
  arrays = _by_pieces(chunks, (query, 3), (gradient, 3), (queries, 1), (sums, 3), (along, 3))
  (of_key, of_value), of_query = jax.lax.scan(piece, nothing, arrays)
  back = lambda x, like: x.swapaxes(2, 3).astype(like.dtype)
  return _whole(of_query), back(of_key, key), back(of_value, value), None, None


_attend_chunks.defvjp(_chunks_forward, _chunks_backward)

# ---- by a device's own kernel --------------------------------------------------------------------------------------

Fused = Callable[..., Float[Array, 'B T N H']]
"""Of queries, keys, values, their layout and a mask what queries find; the softmax's sums have no gradient here."""


def cudnn(
  query: Float[Array, 'B T N H'],
  key: Float[Array, 'B T K H'],
  value: Float[Array, 'B T K H'],
  layout: Layout,
  mask: Mask,
  implementation: str = 'cudnn',
) -> Float[Array, 'B T N H']:
  """cuDNN's flash attention; the mask is an array, one for all heads. `xla` is what it is tested against."""
  visible, call = (mask & SameSegment())(layout, layout)[:, None], jax.nn.dot_product_attention
  return call(query, key, value, mask=visible, implementation=implementation)  # type: ignore[call-overload]


def splash(
  query: Float[Array, 'B T N H'],
  key: Float[Array, 'B T K H'],
  value: Float[Array, 'B T K H'],
  layout: Layout,
  mask: Mask,
) -> Float[Array, 'B T N H']:
  """Pallas splash attention: of the mask, which asks about order alone, blocks that nobody sees are left out.

  Rows are of 128 tokens or a multiple. Elsewhere than on a TPU, it is interpreted.
  """
  group, length = query.shape[2] // key.shape[2], query.shape[1]
  compiled, interpreted = (_splash(mask, group, length, interpret) for interpret in (False, True))

  def attend(query: Any, key: Any, value: Any, layout: Layout, _: Layout) -> Float[Array, 'B T N H']:
    given = (*_grouped(query, key, value), layout.segment)
    return _flat(jax.lax.platform_dependent(*given, tpu=compiled, default=interpreted))

  return each_its_own(attend, query, key, value, layout, layout)


def _splash(mask: Mask, group: int, length: int, interpret: bool) -> Callable[..., Float[Array, 'B K G T H']]:
  """The kernel for `group` query heads that share one of keys, for every key head of every row."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as table

  class Predicate(table.Mask):
    """The mask, asked about a part of a row at a time."""

    shape = (length, length)  # type: ignore[assignment]

    def __getitem__(self, part: Any) -> np.ndarray:
      return seen_by_order(mask, *(np.arange(length)[at] for length, at in zip(self.shape, part, strict=True)))

  size = math.gcd(length, 512)
  blocks = kernel.BlockSizes(
    block_q=size, block_kv=size, block_q_dkv=size, block_kv_dkv=size, block_q_dq=size, block_kv_dq=size
  )
  heads = table.MultiHeadMask([Predicate()] * group)
  attend = kernel.make_splash_mqa_single_device(heads, block_sizes=blocks, interpret=interpret)
  of_row = lambda q, k, v, ids: jax.vmap(functools.partial(attend, segment_ids=kernel.SegmentIds(ids, ids)))(q, k, v)
  return jax.vmap(of_row)


def seen_by_order(mask: Mask, queries: np.ndarray, keys: np.ndarray) -> Bool[np.ndarray, 'T S']:
  """What a mask that asks about order alone lets queries see, both by their places in the row."""

  def layout(order: np.ndarray) -> Layout:
    places = order[None]
    return Layout(places, places, 0 * places, 0 * places + 1, places < 0)

  return np.asarray(mask(layout(queries), layout(keys))[0])


FUSED: dict[str, Fused] = {'cudnn': cudnn, 'splash': splash}

# ---- which of them -------------------------------------------------------------------------------------------------

KERNELS = ('auto', 'plain', 'chunked', *FUSED)

LONG = {'cpu': 512}
"""Tokens of a row from which chunks are faster than all scores at once, where they ever are."""

MOST_PLAIN = {'cpu': 1 << 24}
"""Scores, of all rows and heads, that are too many to exist at once."""


@dataclasses.dataclass(frozen=True)
class Job:
  """What is asked of a kernel."""

  rows: int
  queries: int
  keys: int
  heads: int
  width: int
  dtype: str
  mask: Mask | None
  """All that a query may see, segments apart; None: it is not one mask, as parts are joined or kinds take turns."""
  biased: bool = False
  dropped: bool = False
  compared: int | None = None
  """Keys that each query is compared with where all scores exist at once; None: all."""

  def part(self, compared: int | None = None) -> 'Job':
    """The same as a part of a whole, whose sums are asked for."""
    return dataclasses.replace(self, mask=None, compared=compared)

  def unfit(self, kernel: str) -> str | None:
    """Why a kernel cannot do it."""
    if kernel == 'plain':
      return None
    if self.dropped:
      return 'attention weights are dropped'
    if kernel == 'chunked':
      return None
    if self.mask is None:
      return 'parts are joined by sums that have no gradient in it'
    if self.queries != self.keys:
      return 'queries read a cache'
    if self.biased:
      return 'scores have a bias'
    if kernel == 'cudnn':
      if self.dtype not in {'bfloat16', 'float16'}:
        return f'it has no {self.dtype}'
      return f'heads of {self.width} are no multiple of 8' if self.width % 8 else None
    if not self.mask.of_order:
      return 'the mask asks about more than order'
    return f'{self.queries} is no multiple of 128' if self.queries % 128 else None

  def choose(self, kernel: str = 'auto', device: str | None = None) -> tuple[str, str]:
    """A kernel's name and why it is taken; one that is asked for gives way only where it cannot do it."""
    device = jax.default_backend() if device is None else device
    if kernel != 'auto':
      why = self.unfit(kernel)
      if why is None:
        return kernel, 'as asked'
      name, reason = self.choose(device=device)
      return name, f'{reason}; not {kernel}, as {why}'
    fused = {'gpu': 'cudnn', 'tpu': 'splash'}.get(device)
    given_up = fused and self.unfit(fused)
    if fused and given_up is None:
      return fused, f'the kernel of a {device}'
    but = f'; not {fused}, as {given_up}' if fused else ''
    long = self.queries >= LONG.get(device, math.inf)
    many = self.rows * self.heads * self.queries * (self.compared or self.keys) >= MOST_PLAIN.get(device, 1 << 28)
    if (long or many) and self.unfit('chunked') is None:
      return 'chunked', ('rows are long' if long else 'scores are many') + but
    return 'plain', ('scores are few' if not (long or many) else str(self.unfit('chunked'))) + but
