"""What a cache costs, and that decoding is timed at all."""

import dataclasses

import jax

from gpt_jax.evaluation.speed import PROMPT, cache_bytes, decoding_bytes, decoding_speed
from gpt_jax.models.families import FAMILIES
from gpt_jax.models.heads import LanguageModel
from tests.models.small import parameters, shrunk


def test_cache_bytes_by_hand():
  """Keys and values of 80 layers, 8 heads, 128 wide, in two bytes each; 64 heads without grouping."""
  llama = dataclasses.replace(FAMILIES['llama2_70b'], dtype='bfloat16')
  assert cache_bytes(llama) == 2 * 80 * 8 * 128 * 2
  assert cache_bytes(dataclasses.replace(llama, num_kv_heads=64, stacked=False)) == 8 * cache_bytes(llama)


def test_bytes_that_a_step_reads_by_hand():
  """All parameters but the table that is looked up, and of two rows the cache of a prompt and half of what follows."""
  config = shrunk('llama2_7b')
  held = parameters(config)
  numbers = sum(leaf.size for leaf in jax.tree.leaves(held)) - config.vocab_size * config.model_dim
  read = 4 * numbers + 2 * (PROMPT + 4) * cache_bytes(config)
  assert decoding_bytes(LanguageModel(config), held, rows=2, num_tokens=8) == read


def test_decoding_has_a_speed():
  config = shrunk('llama2_7b')
  assert decoding_speed(LanguageModel(config), parameters(config), rows=2, num_tokens=4, rounds=1) > 0
