"""softmax(q k) v with all scores at once, and what other ways to compute it share with this one."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

from gpt_jax.models import native
from gpt_jax.types import Layout

Drop = Callable[[jax.Array], jax.Array]
"""Dropout of attention weights."""

Bias = Callable[[Layout, Layout, int, int], Float[Array, 'B N T S']]
"""What is added to scores, of two layouts, the number of heads and their width; Alibi is one."""

Attended = tuple[Float[Array, 'B T N H'], Float[Array, 'B T N']]
"""What queries found among some keys, and the logarithm of the sum of the exponentials of their scores."""

product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


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
  query, key, value = grouped(query, key, value)
  if bias is None and drop is None:
    return flat(_attend(query, key, value, visible))
  weights, sums = _weights(query, key, visible, bias)
  weights = weights.astype(value.dtype)
  return flat((_mix(weights if drop is None else drop(weights), value), sums))


def grouped(query: Float[Array, 'B T N H'], *shared: Float[Array, 'B S K H']) -> list[jax.Array]:
  """Scaled queries [B, K, G, T, H], and keys and values [B, K, S, H]."""
  batch, length, _, width = query.shape
  query = query.reshape(batch, length, shared[0].shape[2], -1, width).transpose(0, 2, 3, 1, 4) * width**-0.5
  return [query, *(x.swapaxes(1, 2) for x in shared)]


def flat(found: Any) -> Any:
  """Of arrays [B, K, G, T, ...] the same as [B, T, N, ...]."""
  return jax.tree.map(lambda x: jnp.moveaxis(x, 3, 1).reshape(x.shape[0], x.shape[3], -1, *x.shape[4:]), found)


def _weights(
  query: Float[Array, 'B K G T H'],
  key: Float[Array, 'B K S H'],
  visible: Bool[Array | np.ndarray, 'B T S'],
  bias: Float[Array, 'B N T S'] | None = None,
) -> tuple[Float[Array, 'B K G T S'], Float[Array, 'B K G T']]:
  scores = product('BKGTH,BKSH->BKGTS', query, key)
  if bias is not None:
    scores += bias.reshape(scores.shape)
  scores = jnp.where(visible[:, None, None], scores, LEAST)
  most = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  parts = jnp.exp(scores - most)
  total = jnp.sum(parts, axis=-1, keepdims=True)
  return parts / total, (most + jnp.log(total))[..., 0]


FEW = 32
"""Queries of a row up to which XLA is slower."""

LEAST = float(np.finfo(np.float32).min)
"""The score of a key that a query may not see."""


def _mix(weights: Float[Array, 'B K G T S'], value: Float[Array, 'B K S H']) -> Float[Array, 'B K G T H']:
  return product('BKGTS,BKSH->BKGTH', weights, value).astype(value.dtype)


@jax.custom_vjp
def _attend(
  query: Float[Array, 'B K G T H'],
  key: Float[Array, 'B K S H'],
  value: Float[Array, 'B K S H'],
  visible: Bool[Array | np.ndarray, 'B T S'],
) -> tuple[Float[Array, 'B K G T H'], Float[Array, 'B K G T']]:
  """Attention whose backward pass sums over H where the derivative of a softmax would over S (FlashAttention, B.2).

  Few queries, as decoding has, are served by native.cc on a CPU: XLA copies what they read, and packs it for a product.
  """
  if query.shape[3] > FEW or any(x.dtype != jnp.float32 for x in (query, key, value)):
    return _attend_forward(query, key, value, visible)[0]
  visible = jnp.broadcast_to(visible, (len(query), query.shape[3], key.shape[2]))
  otherwise = lambda *given: list(_attend_forward(*given)[0])
  out, sums = native.call('attend', [query.shape, query.shape[:4]], otherwise, query, key, value, visible)
  return out, sums


def _attend_forward(query: jax.Array, key: jax.Array, value: jax.Array, visible: Any) -> tuple[Any, Any]:
  weights, sums = _weights(query, key, visible)
  weights = weights.astype(value.dtype)
  out = _mix(weights, value)
  return (out, sums), (query, key, value, weights, out)


def _attend_backward(kept: Any, gradients: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array, None]:
  (query, key, value, weights, out), (gradient, of_sums) = kept, gradients
  of_weights = product('BKGTH,BKSH->BKGTS', gradient, value)
  scores = (weights * (of_weights - along(out, gradient, of_sums)[..., None])).astype(query.dtype)
  return (
    product('BKGTS,BKSH->BKGTH', scores, key).astype(query.dtype),
    product('BKGTS,BKGTH->BKSH', scores, query).astype(key.dtype),
    product('BKGTS,BKGTH->BKSH', weights, gradient).astype(value.dtype),
    None,
  )


_attend.defvjp(_attend_forward, _attend_backward)


def along(
  out: Float[Array, '*B T H'], gradient: Float[Array, '*B T H'], of_sums: Float[Array, '*B T']
) -> Float[Array, '*B T']:
  """What all scores of a query have in common of their gradient."""
  return jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1) - of_sums
