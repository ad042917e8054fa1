"""Low-rank adaptation: linear layers of a model that stays as it is, with a small product beside them that learns."""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

from gpt_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Lora:
  """W x + (alpha / rank) B A x, of which A and B alone are learned (Hu et al. 2021, section 4.1).

  A is drawn as PyTorch draws a linear layer, U(-1 / sqrt(I), 1 / sqrt(I)), as in the authors' code; B begins as zero,
  and so the model as it was.
  """

  rank: int = 8
  alpha: float | int = 16
  dropout: float | int = 0.0
  """Of what goes into A."""
  targets: str = 'query|key|value|out|gate|up|down'
  """A regular expression: the names of the linear layers that have them."""

  def __post_init__(self) -> None:
    if self.rank < 1 or not 0 <= self.dropout < 1:
      raise ValueError(f'rank = {self.rank} must be at least 1, and dropout = {self.dropout} in [0, 1)')
    try:
      re.compile(self.targets)
    except re.error as error:
      raise ValueError(f'targets = {self.targets!r} is no regular expression: {error}') from None

  @property
  def scale(self) -> float:
    return self.alpha / self.rank

  def is_of(self, layer: str | None) -> bool:
    """Whether a linear layer of this name has one."""
    return re.fullmatch(self.targets, str(layer)) is not None


PARAMETERS = ('lora_a', 'lora_b')
"""Beside a layer's kernel: [I, rank] and [rank, O], stacked as it is."""


def adapted(params: Params, drawn: Params) -> Params:
  """The parameters of a model without LoRA, and beside them the A and B of those `drawn` for it with LoRA."""

  def walk(drawn: Any, params: Any) -> Any:
    if not isinstance(drawn, Mapping) or not isinstance(params, Mapping):
      return params
    return {name: leaf if name in PARAMETERS else walk(leaf, params[name]) for name, leaf in drawn.items()}

  return walk(drawn, params)


def merged(params: Params, lora: Lora) -> Params:
  """Parameters of the same model without LoRA: W + (alpha / rank) A B, in float32. Kernels must not be quantised."""

  def walk(tree: Any) -> Any:
    if not isinstance(tree, Mapping):
      return tree
    found = {name: walk(branch) for name, branch in tree.items() if name not in PARAMETERS}
    if 'lora_a' in tree:
      kernel = tree['kernel']
      found['kernel'] = kernel + (tree['lora_a'] @ tree['lora_b'] * lora.scale).reshape(kernel.shape)
    return found

  return walk(params)
