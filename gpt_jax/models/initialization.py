"""How weights begin: a part gives the initialiser of each linear layer by its name and the depth of the model."""

from collections.abc import Callable
import dataclasses

from flax import linen as nn
import jax

from gpt_jax.models.deepnorm import DepthScale

Initializer = Callable[..., jax.Array]

RESIDUAL = ('out', 'down')
"""The layers whose output is added to the residual stream."""


@dataclasses.dataclass(frozen=True)
class Normal:
  """N(0, stddev), everywhere (GPT-1; LLaMA says nothing, and this is what its users take)."""

  stddev: float = 0.02

  def __call__(self, name: str, num_layers: int) -> Initializer:
    return nn.initializers.normal(self.stddev)


@dataclasses.dataclass(frozen=True)
class ScaledNormal:
  """N(0, stddev), with layers that write to the residual stream divided by sqrt(2 L), L blocks (GPT-2, section 2.3).

  The paper scales by 1/sqrt(N) with N "residual layers": two a block. The released code only loads weights.
  """

  stddev: float = 0.02

  def __call__(self, name: str, num_layers: int) -> Initializer:
    scale = (2 * num_layers) ** -0.5 if name in RESIDUAL else 1.0
    return nn.initializers.normal(self.stddev * scale)


@dataclasses.dataclass(frozen=True)
class Xavier:
  """Xavier normal, with `gain` on values, attention outputs and the MLP (DeepNet, figure 2; GLM-130B, section 2.1).

  The gain may be that of a depth, see `deepnorm`.
  """

  gain: float | DepthScale = 1.0
  stddev: float = 0.02
  """Of the embeddings, for which both papers are silent."""

  def __call__(self, name: str, num_layers: int) -> Initializer:
    if name in ('embed', 'unembed'):
      return nn.initializers.normal(self.stddev)
    gain = self.gain.gain(num_layers) if isinstance(self.gain, DepthScale) else self.gain
    gain = 1.0 if name in ('query', 'key') else gain
    return nn.initializers.variance_scaling(gain**2, 'fan_avg', 'normal')
