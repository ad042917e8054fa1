"""Linear layers in eight or four bits: what is stored of a kernel, and how it multiplies.

Symmetric rounding to integers, whose unit is the scale, of the kernels of Linear alone; embeddings, the unembedding,
norms and biases stay as they are, as in GLM-130B (Zeng et al. 2023). The matrix product itself is one of two:

  'float'    the integers become the dtype of x as an operand of the product, and the scale multiplies its result
  'dynamic'  each row of x is rounded to eight bits too, so that integers multiply (W8A8: ZeroQuant, Yao et al. 2022;
             LLM.int8() without its outliers, Dettmers et al. 2022); the rounding of x is one more error

Without `activations` it is 'dynamic' on CPU and 'float' elsewhere: XLA's CPU backend takes ten times as long to convert
an operand as to multiply, while its products of integers are faster than those of floats from two rows on (one row is
computed twice). On GPUs and TPUs it can convert within the product, whose time is that of reading the kernel.

The library for this, qwix, quantises a linen model from outside by replacing its products. It does not go through the
`custom_vjp` of our `affine`, whose arguments must be arrays, has no packed four-bit form, and pads no single row.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gpt_jax.types import Params, UserError

Kernel = Mapping[str, jax.Array]
"""What is stored of one kernel, by name."""

ACTIVATIONS = (None, 'float', 'dynamic')


@runtime_checkable
class Quantization(Protocol):
  """How a kernel [I, O] is stored in few bits."""

  @property
  def activations(self) -> str | None: ...

  def encode(self, kernel: Float[Array, 'I O']) -> dict[str, jax.Array]: ...

  def integers(self, kernel: Kernel) -> tuple[Int[Array, '_ _'], int]:
    """In eight bits, and which of its two axes is I."""
    ...

  def decode(self, kernel: Kernel) -> Float[Array, 'I O']: ...


@dataclasses.dataclass(frozen=True)
class Int8:
  """Integers to 127 in absolute value; the scale is the largest weight of an output's group over 127.

  Stored are `values` [O, I], that way round as XLA's CPU products are faster so, and `scale` [O, groups].
  """

  group: int | None = None
  """Inputs that share a scale; None: all."""
  activations: str | None = None
  """'float', 'dynamic' or None, by platform; see the module."""

  def __post_init__(self) -> None:
    _check(self.group, self.activations)

  def encode(self, kernel: Float[Array, 'I O']) -> dict[str, jax.Array]:
    groups = _grouped(kernel.astype(jnp.float32), self.group)
    scale = _positive(jnp.max(jnp.abs(groups), axis=1) / 127)
    values = jnp.round(groups / scale[:, None]).astype(jnp.int8)
    return {'values': values.reshape(kernel.shape).T, 'scale': scale.T}

  def integers(self, kernel: Kernel) -> tuple[Int[Array, 'O I'], int]:
    return kernel['values'], 1

  def decode(self, kernel: Kernel) -> Float[Array, 'I O']:
    values, scale = kernel['values'], kernel['scale']
    return (values.reshape(*scale.shape, -1) * scale[..., None]).reshape(values.shape).T


@dataclasses.dataclass(frozen=True)
class Int4:
  """Integers to 7 in absolute value, whose unit is of a group of inputs: 1 to 18 times the scale of the output.

  The multiple is the one of the least squared error, which is less than with the largest weight over 7 (as Q4_K of
  llama.cpp and the double quantisation of QLoRA, Dettmers et al. 2023, units themselves are quantised). An integer
  times its multiple is at most 126, so one product of eight bits does for all groups. The scale is the largest weight
  of an output over 126.

  Stored are `nibbles` [I / 2, O], inputs 2 i and 2 i + 1 in the low and the high half of a byte (jnp.int4 takes a whole
  one on CPU), `multiples` [groups, O] and `scale` [O, 1].
  """

  group: int | None = 32
  """Inputs that share a unit; None: all."""
  activations: str | None = None
  """'float', 'dynamic' or None, by platform; see the module."""

  def __post_init__(self) -> None:
    _check(self.group, self.activations)

  def encode(self, kernel: Float[Array, 'I O']) -> dict[str, jax.Array]:
    if len(kernel) % 2:
      raise UserError(f'quantization: int4 takes inputs in pairs, and a linear layer has {len(kernel)}; use int8')
    groups = _grouped(kernel.astype(jnp.float32), self.group)
    largest = jnp.max(jnp.abs(groups), axis=1)
    scale = _positive(jnp.max(largest, axis=0) / 126)
    units = groups / scale

    def rounded(multiple: jax.Array) -> jax.Array:
      return jnp.clip(jnp.round(units / multiple), -7, 7)

    def error(multiple: jax.Array) -> jax.Array:
      return jnp.sum((rounded(multiple) * multiple - units) ** 2, axis=1)

    best = 1 + jnp.argmin(jax.lax.map(error, jnp.arange(1.0, 19.0)), axis=0)
    # The largest weight keeps its value, so that what was decoded is encoded as it was.
    multiples = jnp.where(largest > scale * 125.9, 18, best).astype(jnp.int8)
    values = rounded(multiples[:, None].astype(jnp.float32)).astype(jnp.int8).reshape(-1, 2, kernel.shape[1])
    nibbles = (values[:, 0] & 15) | (values[:, 1] << 4)
    return {'nibbles': nibbles, 'multiples': multiples, 'scale': scale[:, None]}

  def integers(self, kernel: Kernel) -> tuple[Int[Array, 'I O'], int]:
    nibbles, multiples = kernel['nibbles'], kernel['multiples']
    values = jnp.stack([(nibbles << 4) >> 4, nibbles >> 4], axis=1)
    return (values.reshape(len(multiples), -1, nibbles.shape[1]) * multiples[:, None]).reshape(-1, nibbles.shape[1]), 0

  def decode(self, kernel: Kernel) -> Float[Array, 'I O']:
    return self.integers(kernel)[0] * kernel['scale'][:, 0]


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
  """x W in float32. Its gradient by x is that of 'float', whatever `activations` say; by the kernel there is none."""
  forms = {'float': functools.partial(_float, quantization), 'dynamic': functools.partial(_dynamic, quantization)}
  if quantization.activations is not None:
    return forms[quantization.activations](x, kernel)
  return jax.lax.platform_dependent(x, kernel, cpu=forms['dynamic'], default=forms['float'])


def _product_forward(quantization: Quantization, x: jax.Array, kernel: Kernel) -> tuple[jax.Array, Any]:
  return product(quantization, x, kernel), (jnp.zeros((), x.dtype), kernel)


def _product_backward(quantization: Quantization, kept: Any, gradient: jax.Array) -> tuple[jax.Array, None]:
  like, kernel = kept
  decoded = quantization.decode(kernel).astype(like.dtype)
  return _dot(gradient.astype(like.dtype), decoded, 1, jnp.float32).astype(like.dtype), None


product.defvjp(_product_forward, _product_backward)


def _float(quantization: Quantization, x: Float[Array, 'B I'], kernel: Kernel) -> Float[Array, 'B O']:
  scale = kernel['scale']
  if scale.shape[1] > 1:  # no one number of an output can come after the sum
    return _dot(x, quantization.decode(kernel).astype(x.dtype), 0, jnp.float32)
  values, axis = quantization.integers(kernel)
  return _dot(x, values.astype(x.dtype), axis, jnp.float32) * scale[:, 0]


def _dynamic(quantization: Quantization, x: Float[Array, 'B I'], kernel: Kernel) -> Float[Array, 'B O']:
  rows, scale = len(x), kernel['scale']
  x = x.astype(jnp.float32)
  if rows == 1:  # XLA's CPU products of one row of integers are ten times as slow as those of two
    x = jnp.concatenate([x, x])
  unit = _positive(jnp.max(jnp.abs(x), axis=1, keepdims=True) / 127)
  rounded = jnp.round(x / unit).astype(jnp.int8)
  # Behind the barrier the integers are unpacked by a loop of its own, not anew for each element of the product.
  values, axis = quantization.integers(kernel)
  values = jax.lax.optimization_barrier(values)
  if scale.shape[1] == 1:
    return (_dot(rounded, values, axis, jnp.int32) * unit * scale[:, 0])[:rows]
  sums = jax.lax.dot_general(
    rounded.reshape(len(x), scale.shape[1], -1), values.reshape(*scale.shape, -1), (((2,), (2,)), ((1,), (1,))),
    preferred_element_type=jnp.int32,
  )  # fmt: skip
  return (jnp.einsum('gbo,og->bo', sums.astype(jnp.float32), scale) * unit)[:rows]


def _dot(x: jax.Array, kernel: jax.Array, axis: int, dtype: Any) -> jax.Array:
  return jax.lax.dot_general(x, kernel, (((1,), (axis,)), ((), ())), preferred_element_type=dtype)


def _grouped(kernel: Float[Array, 'I O'], group: int | None) -> Float[Array, 'groups size O']:
  size = group or len(kernel)
  if len(kernel) % size:
    raise UserError(
      f'quantization: group = {group} does not divide the {len(kernel)} inputs of a linear layer; use a divisor of them'
    )
  return kernel.reshape(-1, size, kernel.shape[1])


def _positive(scale: jax.Array) -> jax.Array:
  """1 where all that is to be scaled is 0."""
  return jnp.where(scale == 0, 1.0, scale)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(quantization: Quantization, stacked: bool, kernel: jax.Array) -> dict[str, jax.Array]:
  return jax.lax.map(quantization.encode, kernel) if stacked else quantization.encode(kernel)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode(quantization: Quantization, stacked: bool, kernel: Kernel) -> jax.Array:
  return jax.lax.map(quantization.decode, kernel) if stacked else quantization.decode(kernel)


def _check(group: int | None, activations: str | None) -> None:
  if group is not None and group < 1:
    raise ValueError(f'group = {group} must be positive')
  if activations not in ACTIVATIONS:
    raise ValueError(f"activations = {activations!r} must be 'float' or 'dynamic'")
