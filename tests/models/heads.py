"""Random queries, keys and values, and what a loss of attention has for gradients."""

import jax
import jax.numpy as jnp

ROWS, WIDTH = 2, 8


def heads_of(length, heads, kv_heads, rows=ROWS, width=WIDTH, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(length + heads + kv_heads), 3)
  shapes = [(rows, length, n, width) for n in (heads, kv_heads, kv_heads)]
  return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def gradients(attend, heads, real):
  """Of outputs and of sums, where a query sees something; with both."""

  def loss(*heads):
    out, sums = (jnp.where(real[(...,) + (None,) * (x.ndim - 2)], x, 0) for x in attend(*heads))
    return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.sin(sums)), (out, sums)

  return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*heads)
