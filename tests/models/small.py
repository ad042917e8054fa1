"""Small models of every family, and their parameters, made once."""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.models.attention import Banded
from gpt_jax.models.caches import Cache
from gpt_jax.models.families import FAMILIES
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.types import Layout, Params, left_to_right

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
  """Random parameters of a language model, none of them at its starting value, so that none can hide.

  Only the shapes are the model's own: compiling its initialisation would take longer than all else.
  """
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(LanguageModel(config).init, jax.random.key(0), random_tokens())

  def draw(path: tuple, x: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.asarray((path[-1].key == 'scale') + 0.15 * rng.standard_normal(x.shape), x.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def forward(config: TransformerConfig) -> Callable[..., tuple[jax.Array, Cache | None]]:
  """The compiled language model: one for all tests that ask for it."""
  return jax.jit(LanguageModel(config).apply)


def logits(config: TransformerConfig, params: Params, tokens: jax.Array, layout: Layout | None = None) -> jax.Array:
  return forward(config)(params, tokens, left_to_right(tokens) if layout is None else layout)[0]
