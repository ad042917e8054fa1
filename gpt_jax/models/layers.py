"""Linear layers and the two feed-forward networks made of them."""

from collections.abc import Callable
import math

from flax import linen as nn
from gpt_jax.models.initialization import Normal
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Activation = Callable[[jax.Array], jax.Array]


def gelu_exact(x: jax.Array) -> jax.Array:
  """x Phi(x), by the error function; `nn.gelu` is the tanh form of GPT-1 and GPT-2."""
  return nn.gelu(x, approximate=False)


class Linear(nn.Module):
  """x W + b over the last `contracted` axes of x, giving axes `features`.

  The product is taken of two matrices, whatever axes heads and batches have: XLA's fast path on every backend.
  """

  features: int | tuple[int, ...]
  contracted: int = 1
  use_bias: bool = True
  init: Callable[[str, int], Callable[..., jax.Array]] = Normal()
  num_layers: int = 1
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Float[Array, '...']) -> Float[Array, '...']:
    features = (self.features,) if isinstance(self.features, int) else self.features
    batch, inputs = x.shape[: -self.contracted], x.shape[-self.contracted :]
    rows, columns = math.prod(inputs), math.prod(features)

    def initialize(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
      return self.init(str(self.name), self.num_layers)(key, (rows, columns)).reshape(shape)

    kernel = self.param('kernel', initialize, (*inputs, *features))
    dtype = jnp.dtype(self.dtype)
    y = jnp.matmul(x.astype(dtype).reshape(-1, rows), kernel.astype(dtype).reshape(rows, columns))
    if self.use_bias:
      y = y + self.param('bias', nn.initializers.zeros, features).astype(dtype).reshape(columns)
    return y.reshape(*batch, *features)


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
