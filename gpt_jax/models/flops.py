"""How much arithmetic a training step asks for."""

import dataclasses
import functools

import jax

from gpt_jax.models.heads import LanguageModel, Medusa, parameter_shapes
from gpt_jax.models.residual import Parallel, PreNorm
from gpt_jax.models.transformer import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Part:
  """FLOPs a token of one part of a language model in training; an addition and a product are two."""

  forward: float
  backward: float
  recomputed: float
  """Done once more in the backward pass, of what the forward pass did not keep."""

  @property
  def needed(self) -> float:
    return self.forward + self.backward


def parts(config: TransformerConfig, length: int, causal: bool = False) -> dict[str, Part]:
  """FLOPs a token at context `length`, by part, but for elementwise work: the `needed` ones add up to `training_flops`.

  Of attention, scores and sums of values are of all keys that a pattern weighs, the causal half not taken off, or if
  `causal`, of those alone that a query may see. Under remat `full` a layer's forward pass is done again, but for the
  last product of what is kept, if nobody asks for it; under `dots` the scores are.
  """
  sizes = _sizes(dataclasses.replace(config.evaluated(), remat=None))
  of = lambda kernel: 2.0 * sum(size for path, size in sizes.items() if f'{kernel}/kernel' in path)
  linear = {name: sum(map(of, kernels)) for name, kernels in LINEAR.items()}
  # A period of layers is kept or not; what its last products give is asked for by a norm behind them alone.
  last = {PreNorm: ['feed-forward'], Parallel: ['feed-forward', 'attention projections']}.get(type(config.residual), [])
  spared = {name: of(LINEAR[name][-1]) / len(config.attention) for name in last}
  keys = config.periods * sum(pattern.keys_seen(length, causal) for pattern in config.attention)
  scores = 4.0 * config.num_heads * config.head_width * keys
  unembedding = 2.0 * config.vocab_size * config.model_dim
  again = lambda name, forward: (forward - spared.get(name, 0.0)) * (config.remat == 'full')
  return {
    'unembedding': Part(unembedding, 2 * unembedding, 0.0),
    **{name: Part(forward, 2 * forward, again(name, forward)) for name, forward in linear.items()},
    SCORES: Part(scores, 2 * scores, scores * (config.remat is not None)),
  }


@functools.cache
def _sizes(config: TransformerConfig) -> dict[str, int]:
  """Numbers in each parameter, by its path."""
  shapes = jax.tree_util.tree_leaves_with_path(parameter_shapes(LanguageModel(config)))
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf.size for path, leaf in shapes}


def parameters(config: TransformerConfig) -> int:
  """Numbers that a language model has."""
  return sum(_sizes(dataclasses.replace(config.evaluated(), remat=None)).values())


LINEAR = {
  'attention projections': ('attention/query', 'attention/key', 'attention/value', 'attention/out'),
  'feed-forward': ('mlp/gate', 'mlp/up', 'mlp/down'),
}
"""Kernels of a layer by part; the last of each is the last that is used."""

SCORES = 'attention scores'


def training_flops(config: TransformerConfig, length: int, causal: bool = False) -> float:
  """FLOPs a token of a forward and backward pass at context `length`: 6 N + 12 L H Q T (PaLM, appendix B).

  N counts what a token is multiplied with: linear layers and the unembedding, not tables that are looked up; T is, for
  each layer, the keys its pattern lets a query see, the causal half not taken off unless `causal`; recomputation does
  not count.
  """
  return sum(part.needed for part in parts(config, length, causal).values())


def reward_flops(config: TransformerConfig, length: int) -> float:
  """FLOPs a token of training a reward model: those of a language model but for its unembedding."""
  return training_flops(config, length) - 6 * config.vocab_size * config.model_dim


def medusa_flops(medusa: Medusa, length: int, joint: bool = False) -> float:
  """FLOPs a token of training Medusa's heads: the frozen model's hidden states, and forward and backward of the heads.

  A shared table costs no gradient of its own. `joint`: the model's own loss and its gradient by hidden states as well.
  """
  config = medusa.config
  forward = training_flops(config, length) / 3
  hidden = 2 * forward if joint else forward - 2 * config.vocab_size * config.model_dim
  head = 6 * config.model_dim**2 + (4 if medusa.shared else 6) * medusa.vocab_size * config.model_dim
  return hidden + medusa.num_heads * head
