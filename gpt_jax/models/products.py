"""Matrix products with a kernel; those of few rows on a CPU, where writing text spends its time, by code of our own.

One token a row is read at a time, so that a product takes as long as its kernel takes to come from memory. XLA's
products for CPUs do so for one row; from two on they pack the kernel first, at 2 to 2.5 times the time of one row, and
a batch, a draft's candidates and integers lose most of what they could win. native.cc reads each number of a kernel
once for eight rows.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gpt_jax.models import native

FEW = 32
"""Rows up to which XLA's products are slower."""


def dot(x: Float[Array, 'B I'], kernel: Float[Array, '_ _'], axis: int = 0) -> Float[Array, 'B O']:
  """x W in float32, where W is `kernel` [I, O], or [O, I] with axis 1; of no gradient, see `layers.affine`."""

  def general(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, kernel, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)

  if kernel.dtype != jnp.float32:
    return general(x, kernel)
  return few_rows(('by_input', 'by_output')[axis], kernel.shape[1 - axis], general, x, kernel)


def few_rows(
  handler: str, outputs: int, otherwise: Callable[..., jax.Array], x: Float[Array, 'B I'], *kernel: jax.Array
) -> Float[Array, 'B O']:
  """A product by a handler of native.cc, if x has few rows of float32 and it is for a CPU; else by `otherwise`.

  Args:
    handler: of native.HANDLERS.
    outputs: O.
    otherwise: of x and the kernel.
    x: the rows.
    *kernel: its arrays, as the handler takes them.
  """
  if not (0 < len(x) <= FEW and x.dtype == jnp.float32):
    return otherwise(x, *kernel)
  return native.call(handler, [(len(x), outputs)], lambda *given: [otherwise(*given)], x, *kernel)[0]
