"""Linear layers and the two feed-forward networks made of them."""

from collections.abc import Callable
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gpt_jax.models.initialization import Normal
from gpt_jax.models.lora import Lora
from gpt_jax.models.products import dot
from gpt_jax.models.quantization import Quantization, product

Activation = Callable[[jax.Array], jax.Array]


def gelu_exact(x: jax.Array) -> jax.Array:
  """x Phi(x), by the error function; `nn.gelu` is the tanh form of GPT-1 and GPT-2."""
  return nn.gelu(x, approximate=False)


class Linear(nn.Module):
  """x W + b over the last `contracted` axes of x, giving axes `features`; a quantisation says how W is stored."""

  features: int | tuple[int, ...]
  contracted: int = 1
  use_bias: bool = True
  kernel_init: Callable[[str, int], Callable[..., jax.Array]] = Normal()
  num_layers: int = 1
  dtype: str = 'float32'
  quantization: Quantization | None = None
  lora: Lora | None = None

  @nn.compact
  def __call__(self, x: Float[Array, '...']) -> Float[Array, '...']:
    features = (self.features,) if isinstance(self.features, int) else self.features
    batch, inputs = x.shape[: -self.contracted], x.shape[-self.contracted :]
    rows, columns = math.prod(inputs), math.prod(features)

    def initialize(key: jax.Array) -> Any:
      kernel = self.kernel_init(str(self.name), self.num_layers)(key, (rows, columns))
      return kernel.reshape(*inputs, *features) if self.quantization is None else self.quantization.encode(kernel)

    kernel = self.param('kernel', initialize)
    bias = self.param('bias', nn.initializers.zeros, features).reshape(columns) if self.use_bias else None
    x = x.astype(self.dtype).reshape(*batch, rows)
    if self.quantization is None:
      y = affine(x, kernel.reshape(rows, columns), bias)
    else:
      y = product(self.quantization, x.reshape(-1, rows), kernel)
      y = (y if bias is None else y + bias).astype(self.dtype)
    y = y.reshape(*batch, columns)
    if self.lora is not None and self.lora.is_of(self.name):
      y = y + self.beside(self.lora, x, columns)
    return y.reshape(*batch, *features)

  def beside(self, lora: Lora, x: Float[Array, '*B I'], columns: int) -> Float[Array, '*B O']:
    """What LoRA adds."""
    uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
    down = self.param('lora_a', uniform, (x.shape[-1], lora.rank))
    up = self.param('lora_b', nn.initializers.zeros, (lora.rank, columns))
    x = nn.Dropout(lora.dropout, deterministic=False)(x) if lora.dropout else x
    return affine(affine(x, down, None), up, None) * lora.scale


@jax.custom_vjp
def affine(
  x: Float[Array, '*B I'], kernel: Float[Array, 'I O'], bias: Float[Array, 'O'] | None
) -> Float[Array, '*B O']:
  """x W + b in the dtype of x, sums in float32.

  Written with its gradient because XLA's CPU path depends on the form: products of two matrices are up to 2.5 times as
  fast as those with more axes, but for the kernel's gradient in bfloat16 it is the other way round.
  """
  return _affine_forward(x, kernel, bias)[0]


def _affine_forward(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, Any]:
  y = dot(x.reshape(-1, x.shape[-1]), kernel.astype(x.dtype))
  y = y if bias is None else y + bias
  return y.astype(x.dtype).reshape(*x.shape[:-1], -1), (x, kernel, bias)


def _affine_backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  x, kernel, bias = kept
  flat = gradient.reshape(-1, gradient.shape[-1])
  for_x = _product(flat, kernel.astype(x.dtype), ((1,), (1,))).astype(x.dtype).reshape(x.shape)
  for_bias = None if bias is None else jnp.sum(gradient, tuple(range(x.ndim - 1)), jnp.float32).astype(bias.dtype)
  return for_x, _over_rows(x, gradient).astype(kernel.dtype), for_bias


affine.defvjp(_affine_forward, _affine_backward)


@jax.custom_vjp
def unembed(x: Float[Array, '*B D'], table: Float[Array, 'V D']) -> Float[Array, '*B V']:
  """x E^T in float32: products, backward too, are of numbers in the dtype of x, as in `affine`."""
  return _unembed_forward(x, table)[0]


def _unembed_forward(x: jax.Array, table: jax.Array) -> tuple[jax.Array, Any]:
  logits = dot(x.reshape(-1, x.shape[-1]), table.astype(x.dtype), axis=1)
  return logits.reshape(*x.shape[:-1], -1), (x, table)


def _unembed_backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, table = kept
  gradient = gradient.astype(x.dtype)
  for_x = _product(gradient.reshape(-1, gradient.shape[-1]), table.astype(x.dtype), ((1,), (0,)))
  return for_x.astype(x.dtype).reshape(x.shape), _over_rows(gradient, x).astype(table.dtype)


unembed.defvjp(_unembed_forward, _unembed_backward)


def _product(a: jax.Array, b: jax.Array, contracted: tuple[tuple[int, ...], tuple[int, ...]]) -> jax.Array:
  return jax.lax.dot_general(a, b, (contracted, ((), ())), preferred_element_type=jnp.float32)


def _over_rows(a: Float[Array, '*B I'], b: Float[Array, '*B O']) -> Float[Array, 'I O']:
  """The sum of outer products, by the form that is fast for the dtype."""
  if a.dtype == jnp.float32:
    return _product(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]), ((0,), (0,)))
  rows = tuple(range(a.ndim - 1))
  return _product(a, b, (rows, rows))


class Mlp(nn.Module):
  """down(activation(up(x)))."""

  hidden: int
  activation: Activation = nn.gelu
  linear: Callable[..., nn.Module] = Linear

  @nn.compact
  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    h = self.activation(self.linear(self.hidden, name='up')(x))
    return self.linear(x.shape[-1], name='down')(h)


class GatedMlp(nn.Module):
  """down(activation(gate(x)) * up(x)): SwiGLU with silu, GeGLU with gelu (Shazeer 2020)."""

  hidden: int
  activation: Activation = nn.silu
  linear: Callable[..., nn.Module] = Linear

  @nn.compact
  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    gate, up = self.linear(self.hidden, name='gate')(x), self.linear(self.hidden, name='up')(x)
    return self.linear(x.shape[-1], name='down')(self.activation(gate) * up)
