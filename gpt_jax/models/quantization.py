"""Linear layers in eight or four bits: what is stored of a kernel, and how it multiplies.

Symmetric rounding to integers, whose unit is the scale, of the kernels of Linear alone; embeddings, the unembedding,
norms and biases stay as they are, as in GLM-130B (Zeng et al. 2023). Weights alone are in few bits: the integers become
floats within the product, and the scale multiplies its result. On GPUs and TPUs XLA converts an operand as the product
reads it. Its CPU backend first makes a kernel of floats, which takes longer than the product of few rows: there
native.cc converts in registers, and a kernel of floats is made for many rows alone.

The library for this, qwix, quantises a linen model from outside by replacing its products. It does not go through the
`custom_vjp` of our `affine`, whose arguments must be arrays, and has no packed four-bit form.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gpt_jax.models.products import dot, few_rows
from gpt_jax.types import Params, UserError

Kernel = Mapping[str, jax.Array]
"""What is stored of one kernel, by name."""


@runtime_checkable
class Quantization(Protocol):
  """How a kernel [I, O] is stored in few bits."""

  handler: ClassVar[str]
  arrays: ClassVar[tuple[str, ...]]

  def encode(self, kernel: Float[Array, 'I O']) -> dict[str, jax.Array]: ...

  def integers(self, kernel: Kernel) -> Int[Array, 'O I']:
    """In eight bits, of which one is `scale`."""
    ...

  def decode(self, kernel: Kernel) -> Float[Array, 'I O']: ...


@dataclasses.dataclass(frozen=True)
class Int8:
  """Integers to 127 in absolute value; the scale is the largest weight of an output's group over 127.

  Stored are `values` [O, I] and `scale` [O, groups].
  """

  handler: ClassVar[str] = 'by_output_int8'
  arrays: ClassVar[tuple[str, ...]] = ('values', 'scale')

  group: int | None = None
  """Inputs that share a scale; None: all."""

  def __post_init__(self) -> None:
    _check(self.group)

  def encode(self, kernel: Float[Array, 'I O']) -> dict[str, jax.Array]:
    groups = _grouped(kernel.astype(jnp.float32), self.group)
    scale = _positive(jnp.max(jnp.abs(groups), axis=2) / 127)
    values = jnp.round(groups / scale[..., None]).astype(jnp.int8)
    return {'values': values.reshape(kernel.shape[::-1]), 'scale': scale}

  def integers(self, kernel: Kernel) -> Int[Array, 'O I']:
    return kernel['values']

  def decode(self, kernel: Kernel) -> Float[Array, 'I O']:
    values, scale = kernel['values'], kernel['scale']
    return (values.reshape(*scale.shape, -1) * scale[..., None]).reshape(values.shape).T


@dataclasses.dataclass(frozen=True)
class Int4:
  """Integers to 7 in absolute value, whose unit is of a group of inputs: 1 to 18 times the scale of the output.

  The multiple is the one of the least squared error, which is less than with the largest weight over 7 (as Q4_K of
  llama.cpp and the double quantisation of QLoRA, Dettmers et al. 2023, units themselves are quantised). An integer
  times its multiple is at most 126, so it fits in eight bits. The scale is the largest weight of an output over 126.

  Stored are `nibbles` [O, I / 2], the j-th of the first and of the second half of a group in the low and the high half
  of a byte (jnp.int4 takes a whole one on CPU), `multiples` [O, groups] and `scale` [O, 1].
  """

  handler: ClassVar[str] = 'by_output_int4'
  arrays: ClassVar[tuple[str, ...]] = ('nibbles', 'multiples', 'scale')

  group: int | None = 32
  """Inputs that share a unit; None: all."""

  def __post_init__(self) -> None:
    _check(self.group)

  def encode(self, kernel: Float[Array, 'I O']) -> dict[str, jax.Array]:
    groups = _grouped(kernel.astype(jnp.float32), self.group)
    if groups.shape[2] % 2:
      raise UserError(f'quantization: int4 takes inputs in pairs, and a group has {groups.shape[2]}; use int8')
    largest = jnp.max(jnp.abs(groups), axis=2)
    scale = _positive(jnp.max(largest, axis=1, keepdims=True) / 126)
    units = groups / scale[..., None]

    def rounded(multiple: jax.Array) -> jax.Array:
      return jnp.clip(jnp.round(units / multiple), -7, 7)

    def error(multiple: jax.Array) -> jax.Array:
      return jnp.sum((rounded(multiple) * multiple - units) ** 2, axis=2)

    best = 1 + jnp.argmin(jax.lax.map(error, jnp.arange(1.0, 19.0)), axis=0)
    # The largest weight keeps its value, so that what was decoded is encoded as it was.
    multiples = jnp.where(largest > scale * 125.9, 18, best).astype(jnp.int8)
    low, high = jnp.split(rounded(multiples[..., None].astype(jnp.float32)).astype(jnp.int8), 2, axis=2)
    nibbles = ((low & 15) | (high << 4)).reshape(kernel.shape[1], -1)
    return {'nibbles': nibbles, 'multiples': multiples, 'scale': scale}

  def integers(self, kernel: Kernel) -> Int[Array, 'O I']:
    multiples = kernel['multiples']
    nibbles = kernel['nibbles'].reshape(*multiples.shape, -1)
    values = jnp.concatenate([(nibbles << 4) >> 4, nibbles >> 4], axis=2)
    return (values * multiples[..., None]).reshape(len(multiples), -1)

  def decode(self, kernel: Kernel) -> Float[Array, 'I O']:
    return self.integers(kernel).T * kernel['scale'][:, 0]


def quantize(params: Params, quantization: Quantization, like: Params) -> Params:
  """Parameters of a model in float as those of the same model with this quantisation.

  A kernel after the other is encoded, and of stacked layers one layer after the other.

  Args:
    params: also shapes alone, under jax.eval_shape.
    quantization: of the second model.
    like: its parameters, or their shapes (see `parameter_shapes`).

  Raises:
    UserError: a group does not divide the inputs of a layer.
  """
  return jax.tree.map(functools.partial(encoded, quantization), params, like)


def encoded(quantization: Quantization, array: Any, like: Any) -> Any:
  """A parameter in float as it stands in `like`: the same, or if it is a kernel there in few bits, encoded."""
  if not isinstance(like, Mapping):
    return array
  *layers, outputs, _ = like['scale'].shape
  return _encode(quantization, bool(layers), array.reshape(*layers, -1, outputs))


def dequantize(params: Params, quantization: Quantization, like: Params) -> Params:
  """Parameters with this quantisation as float32 ones of the same model without; `like` is of the latter, see quantize.

  Encoded again they stand for the same numbers.
  """

  def decoded(wanted: Any, stored: Any) -> Any:
    if not isinstance(stored, Mapping):
      return stored
    return _decode(quantization, stored['scale'].ndim > 2, stored).reshape(wanted.shape)

  return jax.tree.map(decoded, like, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(quantization: Quantization, x: Float[Array, 'B I'], kernel: Kernel) -> Float[Array, 'B O']:
  """x W in float32. By the kernel it has no gradient."""

  def otherwise(x: jax.Array, *arrays: jax.Array) -> jax.Array:
    stored = dict(zip(quantization.arrays, arrays, strict=True))
    fused = functools.partial(_product, quantization)
    return jax.lax.platform_dependent(x, stored, cpu=functools.partial(_apart, quantization), default=fused)

  arrays = (kernel[name] for name in quantization.arrays)
  return few_rows(quantization.handler, len(kernel['scale']), otherwise, x, *arrays)


def _product_forward(quantization: Quantization, x: jax.Array, kernel: Kernel) -> tuple[jax.Array, Any]:
  return product(quantization, x, kernel), (jnp.zeros((), x.dtype), kernel)


def _product_backward(quantization: Quantization, kept: Any, gradient: jax.Array) -> tuple[jax.Array, None]:
  like, kernel = kept
  decoded = quantization.decode(kernel).astype(like.dtype)
  return dot(gradient.astype(like.dtype), decoded, 1).astype(like.dtype), None


product.defvjp(_product_forward, _product_backward)


def _product(quantization: Quantization, x: Float[Array, 'B I'], kernel: Kernel) -> Float[Array, 'B O']:
  scale = kernel['scale']
  if scale.shape[1] > 1:  # no one number of an output can come after the sum
    return dot(x, quantization.decode(kernel).astype(x.dtype))
  return dot(x, quantization.integers(kernel).astype(x.dtype), axis=1) * scale[:, 0]


def _apart(quantization: Quantization, x: Float[Array, 'B I'], kernel: Kernel) -> Float[Array, 'B O']:
  """Behind the barrier the kernel is made once, not anew for each element of the product."""
  return dot(x, jax.lax.optimization_barrier(quantization.decode(kernel).astype(x.dtype)))


def _grouped(kernel: Float[Array, 'I O'], group: int | None) -> Float[Array, 'O groups size']:
  size = group or len(kernel)
  if len(kernel) % size:
    raise UserError(
      f'quantization: group = {group} does not divide the {len(kernel)} inputs of a linear layer; use a divisor of them'
    )
  return kernel.T.reshape(kernel.shape[1], -1, size)


def _positive(scale: jax.Array) -> jax.Array:
  """1 where all that is to be scaled is 0."""
  return jnp.where(scale == 0, 1.0, scale)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(quantization: Quantization, stacked: bool, kernel: jax.Array) -> dict[str, jax.Array]:
  return jax.lax.map(quantization.encode, kernel) if stacked else quantization.encode(kernel)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode(quantization: Quantization, stacked: bool, kernel: Kernel) -> jax.Array:
  return jax.lax.map(quantization.decode, kernel) if stacked else quantization.decode(kernel)


def _check(group: int | None) -> None:
  if group is not None and group < 1:
    raise ValueError(f'group = {group} must be positive')
