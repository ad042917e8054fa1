"""Heads: formulas, how they begin, and what they read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models.heads import (
  LanguageModel,
  Medusa,
  RewardModel,
  medusa_params,
  quantized_medusa,
  reward_params,
  unembedding_table,
)
from gpt_jax.models.quantization import Int8
from gpt_jax.models.transformer import Transformer
from gpt_jax.types import left_to_right
from tests.models.small import VOCABULARY, parameters, random_tokens, shrunk

CONFIG = shrunk('llama2_7b', logit_softcap=3.0)
HIDDEN = jax.random.normal(jax.random.key(0), (2, 5, 32))


def random_heads(medusa: Medusa) -> dict:
  shapes = jax.eval_shape(medusa.init, jax.random.key(0), HIDDEN)
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), shapes)


@pytest.mark.parametrize('shared', [False, True])
def test_the_formula(shared):
  """W2 (SiLU(W1 h + b) + h), each head with its own numbers, softcapped as the model is."""
  medusa = Medusa(CONFIG, 3, shared)
  params = random_heads(medusa)
  inner = {name: np.asarray(value, np.float64) for name, value in params['params'].items()}
  assert inner['residual_kernel'].shape == (3, 32, 32)
  assert inner['unembed_table'].shape == (1 if shared else 3, VOCABULARY, 32)
  logits = medusa.apply(params, HIDDEN)
  assert logits.shape == (2, 5, 3, VOCABULARY) and logits.dtype == jnp.float32
  h = np.asarray(HIDDEN, np.float64)
  for k in range(3):
    x = h @ inner['residual_kernel'][k] + inner['residual_bias'][k]
    plain = (x / (1 + np.exp(-x)) + h) @ inner['unembed_table'][0 if shared else k].T
    np.testing.assert_allclose(logits[:, :, k], 3 * np.tanh(plain / 3), atol=1e-4)


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('tied', [False, True])
def test_every_head_begins_as_the_model(tied, shared):
  cfg = shrunk('llama2_7b', tie_embeddings=tied, logit_softcap=3.0)
  base = parameters(cfg)
  hidden, unembed, _ = LanguageModel(cfg).apply(base, random_tokens(), method='features')
  medusa = Medusa(cfg, 3, shared)
  heads = medusa_params(medusa, unembedding_table(cfg, base))
  assert jax.tree.structure(heads) == jax.tree.structure(random_heads(medusa))
  logits = medusa.apply(heads, hidden)
  for k in range(3):
    np.testing.assert_allclose(logits[:, :, k], unembed(hidden), atol=1e-5)


def test_heads_with_a_vocabulary_of_their_own_begin_as_the_model_does_there():
  known, base = np.array([3, 4, 9, 20]), parameters(CONFIG)
  table, medusa = unembedding_table(CONFIG, base), Medusa(CONFIG, 2, draft_vocab_size=4)
  whole = Medusa(CONFIG, 2)
  found = medusa.apply(medusa_params(medusa, table, known), HIDDEN)
  np.testing.assert_allclose(found, whole.apply(medusa_params(whole, table), HIDDEN)[..., known], atol=1e-5)


def test_a_shared_table_gets_no_gradient_and_others_each_their_own():
  for shared in (False, True):
    medusa = Medusa(CONFIG, 3, shared)
    loss = lambda params, medusa=medusa: jnp.sum(medusa.apply(params, HIDDEN)[:, :, 1] ** 2)
    gradient = jax.grad(loss)(random_heads(medusa))['params']
    moved = {name: np.abs(np.asarray(x)).reshape(len(x), -1).sum(1) > 0 for name, x in gradient.items()}
    assert moved['residual_kernel'].tolist() == [False, True, False]
    assert moved['unembed_table'].tolist() == ([False] if shared else [False, True, False])


@pytest.mark.parametrize('shared', [False, True])
def test_tables_in_eight_bits_are_rounded_by_rows(shared):
  medusa = Medusa(CONFIG, 3, shared)
  params = random_heads(medusa)
  table = np.asarray(params['params']['unembed_table'])
  scale = np.abs(table).max(axis=2, keepdims=True) / 127
  rounded = {'params': {**params['params'], 'unembed_table': jnp.asarray(np.round(table / scale) * scale)}}
  small, stored = quantized_medusa(medusa, params, Int8())
  shapes = jax.eval_shape(small.init, jax.random.key(0), HIDDEN)
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, stored)
  assert sum(leaf.nbytes for leaf in jax.tree.leaves(stored)) < sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  for rows in (HIDDEN, HIDDEN[0, 0]):
    np.testing.assert_allclose(small.apply(stored, rows), medusa.apply(rounded, rows), atol=1e-4)
  assert np.abs(np.asarray(small.apply(stored, HIDDEN) - medusa.apply(params, HIDDEN))).max() > 1e-3


def test_a_shared_table_is_read_once():
  medusa = Medusa(CONFIG, 3, shared=True)
  assert str(jax.make_jaxpr(medusa.apply)(random_heads(medusa), HIDDEN[0])).count('name=unembed') == 1


def test_computation_is_in_the_dtype_of_the_model():
  medusa = Medusa(shrunk('llama2_7b', dtype='bfloat16'), 2)
  params = random_heads(medusa)
  features, _ = medusa.apply(params, HIDDEN, method='features')
  assert features.dtype == jnp.bfloat16 and medusa.apply(params, HIDDEN).dtype == jnp.float32
  assert params['params']['residual_kernel'].dtype == jnp.float32


def test_a_reward_is_read_at_the_last_token():
  """Neither what stands behind it as padding nor how much of that there is matters; all before it does."""
  model = RewardModel(CONFIG)
  drawn = jax.jit(model.init)(jax.random.key(1), random_tokens())
  params = reward_params(parameters(CONFIG), drawn)
  tokens = random_tokens(rows=3)
  hidden, _ = Transformer(CONFIG).apply({'params': params['params']['transformer']}, tokens)
  kernel = np.asarray(params['params']['reward_kernel'])
  np.testing.assert_allclose(model.apply(params, tokens), np.asarray(hidden)[:, -1] @ kernel, atol=1e-5)
  lengths = np.array([5, 9, 12])
  real = np.arange(12) < lengths[:, None]
  layout = dataclasses.replace(left_to_right(tokens), segment=jnp.asarray(real, jnp.int32))
  rewards = model.apply(params, jnp.where(real, tokens, 3), layout)
  for row, length in enumerate(lengths):
    np.testing.assert_allclose(rewards[row], model.apply(params, tokens[row : row + 1, :length])[0], atol=1e-5)
  changed = model.apply(params, tokens.at[0, 4].add(1) % VOCABULARY, layout)
  assert abs(float(changed[0] - rewards[0])) > 1e-4 and changed[1] == rewards[1]


def test_a_reward_model_begins_as_the_language_model_with_a_new_head():
  model = RewardModel(shrunk('llama2_7b', model_dim=1024, head_dim=8))
  drawn = jax.jit(model.init)(jax.random.key(0), random_tokens())['params']
  assert abs(float(jnp.std(drawn['reward_kernel'])) * 1025**0.5 - 1) < 0.1 and drawn['reward_bias'] == 0
  base = parameters(CONFIG)
  begun = reward_params(base, jax.jit(RewardModel(CONFIG).init)(jax.random.key(0), random_tokens()))['params']
  assert begun['transformer'] is base['params']['transformer'] and set(begun) == {
    'transformer',
    'reward_kernel',
    'reward_bias',
  }
