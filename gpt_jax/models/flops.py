"""How much arithmetic a training step asks for."""

import jax

from gpt_jax.models.heads import LanguageModel, Medusa, parameter_shapes
from gpt_jax.models.transformer import TransformerConfig


def matmul_parameters(config: TransformerConfig) -> int:
  """Parameters a token is multiplied with: linear layers and the unembedding, not tables that are looked up."""
  shapes = parameter_shapes(LanguageModel(config.evaluated()))
  kernels = [
    leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes) if 'kernel' in jax.tree_util.keystr(path)
  ]
  return sum(leaf.size for leaf in kernels) + config.vocab_size * config.model_dim


def training_flops(config: TransformerConfig, length: int, causal: bool = False) -> float:
  """FLOPs a token of a forward and backward pass at context `length`: 6 N + 12 L H Q T (PaLM, appendix B).

  N counts `matmul_parameters`; T is, for each layer, the keys its pattern lets a query see, the causal half not taken
  off unless `causal`; recomputation does not count.
  """
  keys = config.periods * sum(pattern.keys_seen(length, causal) for pattern in config.attention)
  return float(6 * matmul_parameters(config) + 12 * config.num_heads * config.head_width * keys)


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
  head = 6 * config.model_dim**2 + (4 if medusa.shared else 6) * config.vocab_size * config.model_dim
  return hidden + medusa.num_heads * head
