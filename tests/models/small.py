"""Small models of every family, and their parameters, made once."""

import dataclasses
import functools

from gpt_jax.models.attention import Banded
from gpt_jax.models.families import FAMILIES
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.types import Params
import jax

VOCABULARY = 31
LENGTH = 12


def shrunk(family: str, **fields) -> TransformerConfig:
  """The family with two periods of layers, width 32 and every part kept."""
  cfg = FAMILIES[family]
  heads = {1: 1, cfg.num_heads: 4}.get(cfg.num_kv_heads, 2)
  attention = tuple(Banded(4, p.mask) if isinstance(p, Banded) else p for p in cfg.attention)
  positions = cfg.positions and cfg.positions.copy(length=16)
  small = {
    'vocab_size': VOCABULARY, 'num_layers': 2 * len(attention), 'model_dim': 32, 'num_heads': 4, 'head_dim': None,
    'num_kv_heads': heads, 'mlp': cfg.mlp.copy(hidden=48), 'attention': attention, 'positions': positions,
  }  # fmt: skip
  return dataclasses.replace(cfg.evaluated(), **{**small, **fields})


def random_tokens(seed: int = 1, rows: int = 2, length: int = LENGTH) -> jax.Array:
  return jax.random.randint(jax.random.key(seed), (rows, length), 0, VOCABULARY)


@functools.cache
def parameters(config: TransformerConfig) -> Params:
  """Random parameters of a language model, none of them at its starting value, so that none can hide."""
  params = jax.jit(LanguageModel(config).init)(jax.random.key(0), random_tokens())
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  return tree.unflatten([x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


def logits(config: TransformerConfig, params: Params, tokens: jax.Array, layout=None) -> jax.Array:
  return jax.jit(LanguageModel(config).apply)(params, tokens, layout)[0]
