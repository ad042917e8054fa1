"""The constants by which deep post-norm models are kept stable, as functions of the number of layers."""

import dataclasses


class DepthScale:
  """Alpha, which the residual stream is multiplied with, and the gain of what is added to it."""

  def alpha(self, num_layers: int) -> float:
    raise NotImplementedError

  def gain(self, num_layers: int) -> float:
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class DeepNet(DepthScale):
  """Of a decoder of M layers (2 M)^(1/4) and (8 M)^(-1/4) (Wang et al. 2022, figure 2)."""

  def alpha(self, num_layers: int) -> float:
    return (2 * num_layers) ** 0.25

  def gain(self, num_layers: int) -> float:
    return (8 * num_layers) ** -0.25


@dataclasses.dataclass(frozen=True)
class Glm(DepthScale):
  """(2 N)^(1/2) and (2 N)^(-1/2) (GLM-130B, section 2.1; so ChatGLM-6B's alpha)."""

  def alpha(self, num_layers: int) -> float:
    return (2 * num_layers) ** 0.5

  def gain(self, num_layers: int) -> float:
    return (2 * num_layers) ** -0.5
