"""How fast a model writes, and what its cache costs."""

import statistics
import time

import jax
import numpy as np

from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.decoding.steps import unstacked
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.transformer import TransformerConfig, empty_cache
from gpt_jax.types import Params


def cache_bytes(config: TransformerConfig) -> int:
  """Bytes of keys and values that one token adds to the cache, 2 L K H numbers, until the ring of a band is full."""
  cache = jax.eval_shape(lambda: empty_cache(config, 1, 1))
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache.layers))


PROMPT = 16
"""Tokens of each row's prompt."""


def decoding_bytes(model: LanguageModel, params: Params, *, rows: int, num_tokens: int) -> int:
  """Bytes that a step of decoding must read, on the average: the parameters once for all rows, and each row's cache.

  A table that is looked up counts nothing, as of it one line a row is read.
  """
  tables = [] if model.config.tie_embeddings else [params['params']['transformer']['embed']]
  held, looked_up = (sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (params, tables))
  cache = jax.eval_shape(lambda: empty_cache(model.config, rows, PROMPT + num_tokens // 2))
  return held - looked_up + sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache.layers))


def decoding_speed(model: LanguageModel, params: Params, *, rows: int, num_tokens: int, rounds: int = 3) -> float:
  """Tokens per second of greedy decoding, all rows together: the median of some rounds after the one that compiles.

  Reading the prompts, of PROMPT tokens, is in the time.
  """
  model, params = unstacked(model, params)
  prompts = np.random.default_rng(0).integers(0, model.config.vocab_size, (rows, PROMPT)).tolist()
  seconds = []
  for _ in range(rounds + 1):
    start = time.perf_counter()
    generate(model, params, prompts, max_new_tokens=num_tokens, sampling=Sampling(temperature=0), stride=64)
    seconds.append(time.perf_counter() - start)
  return rows * num_tokens / statistics.median(seconds[1:])
