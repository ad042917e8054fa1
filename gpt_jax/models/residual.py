"""How a block's two sublayers join the residual stream, and where the norms stand."""

from collections.abc import Callable
import dataclasses

import jax

from gpt_jax.models.deepnorm import DepthScale

Sublayer = Callable[[jax.Array], jax.Array]
Norm = Callable[[str], Sublayer]
"""Makes (the first time) the norm of that name."""


@dataclasses.dataclass(frozen=True)
class PreNorm:
  """x + f(norm(x)), and a norm at the end (GPT-2, GPT-3, LLaMA)."""

  def begin(self, x: jax.Array, norm: Norm) -> jax.Array:
    return x

  def block(self, x: jax.Array, attention: Sublayer, mlp: Sublayer, norm: Norm, num_layers: int) -> jax.Array:
    x = x + attention(norm('norm_attention')(x))
    return x + mlp(norm('norm_mlp')(x))

  def finish(self, x: jax.Array, norm: Norm) -> jax.Array:
    return norm('norm_final')(x)


@dataclasses.dataclass(frozen=True)
class PostNorm:
  """norm(alpha x + f(x)): GPT-1 with alpha 1; DeepNorm with alpha above 1 (DeepNet, equation 4).

  GLM-130B and ChatGLM-6B also norm the embeddings: their code norms what enters a sublayer and adds to the normed
  stream, which is this form with one norm more at the start.
  """

  alpha: float | DepthScale = 1.0
  norm_embedding: bool = False

  def begin(self, x: jax.Array, norm: Norm) -> jax.Array:
    return norm('norm_embedding')(x) if self.norm_embedding else x

  def block(self, x: jax.Array, attention: Sublayer, mlp: Sublayer, norm: Norm, num_layers: int) -> jax.Array:
    alpha = self.alpha.alpha(num_layers) if isinstance(self.alpha, DepthScale) else self.alpha
    x = norm('norm_attention')(alpha * x + attention(x))
    return norm('norm_mlp')(alpha * x + mlp(x))

  def finish(self, x: jax.Array, norm: Norm) -> jax.Array:
    return x


@dataclasses.dataclass(frozen=True)
class Parallel:
  """x + attention(norm(x)) + mlp(norm(x)): one norm for both (Falcon-7B, GPT-J) or one each (Falcon-40B, GPT-NeoX)."""

  shared_norm: bool = True

  def begin(self, x: jax.Array, norm: Norm) -> jax.Array:
    return x

  def block(self, x: jax.Array, attention: Sublayer, mlp: Sublayer, norm: Norm, num_layers: int) -> jax.Array:
    normed = norm('norm_attention')(x)
    return x + attention(normed) + mlp(normed if self.shared_norm else norm('norm_mlp')(x))

  def finish(self, x: jax.Array, norm: Norm) -> jax.Array:
    return norm('norm_final')(x)
