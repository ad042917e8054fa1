"""Low-rank adaptation: numbers by hand, the model as it was at first, and what it is merged into."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.layers import Linear
from gpt_jax.models.lora import Lora, adapted, merged
from gpt_jax.models.parts import from_config, part, to_config
from gpt_jax.models.transformer import unstack
from gpt_jax.sharding import Placement, make_mesh
from gpt_jax.types import UserError
from tests.models.small import logits, parameters, random_tokens, shrunk

LORA = Lora(rank=3, alpha=6)
FAMILIES = ['gpt2_small', 'llama2_70b', pytest.param('falcon_7b', marks=pytest.mark.slow)]


def test_by_hand():
  """x = (1, 2), W = I, A = (1, -1)^T, B = (10, 20), alpha / rank = 3: x + 3 (1 - 2) (10, 20)."""
  layer = Linear(2, use_bias=False, lora=Lora(rank=1, alpha=3), name='query')
  params = {'kernel': jnp.eye(2), 'lora_a': jnp.array([[1.0], [-1.0]]), 'lora_b': jnp.array([[10.0, 20.0]])}
  np.testing.assert_allclose(layer.apply({'params': params}, jnp.array([1.0, 2.0])), [1 - 30, 2 - 60])


@pytest.mark.parametrize('family', FAMILIES)
def test_it_begins_as_the_model_and_is_merged_into_one(family):
  plain = shrunk(family)
  config = dataclasses.replace(plain, lora=LORA)
  drawn = jax.jit(LanguageModel(config).init)(jax.random.key(0), random_tokens())
  params = adapted(parameters(plain), drawn)
  want = logits(plain, parameters(plain), random_tokens())
  np.testing.assert_array_equal(logits(config, params, random_tokens()), want)
  learned = parameters(config)  # with a B that is not zero
  got = logits(config, learned, random_tokens())
  np.testing.assert_allclose(logits(plain, merged(learned, LORA), random_tokens()), got, atol=2e-4)
  assert np.abs(got - logits(plain, strip(learned), random_tokens())).max() > 0.01, 'it must matter'
  apart = dataclasses.replace(config, stacked=False)
  np.testing.assert_allclose(logits(apart, unstack(learned), random_tokens()), got, atol=2e-5)
  jax.tree.map(np.testing.assert_array_equal, merged(unstack(learned), LORA), unstack(merged(learned, LORA)))


def strip(params):
  return merged(params, Lora(rank=1, alpha=0))


def test_targets_alone_have_one():
  config = shrunk('llama2_70b', lora=Lora(rank=2, targets='query|val.*'))
  names = {
    path[-2].key for path, _ in jax.tree_util.tree_leaves_with_path(parameters(config)) if path[-1].key == 'lora_a'
  }
  assert names == {'query', 'value'}


def test_its_dropout_is_of_its_own_input_and_not_of_use():
  config = shrunk('gpt2_small', lora=Lora(rank=3, dropout=0.5))
  params, tokens = parameters(config), random_tokens()
  run = lambda key: LanguageModel(config).apply(params, tokens, rngs={'dropout': jax.random.key(key)})[0]
  assert np.abs(run(0) - run(1)).max() > 1e-3
  without = strip(params)
  np.testing.assert_allclose(
    LanguageModel(config).apply(adapted(without, zeroed(params)), tokens, rngs={'dropout': jax.random.key(0)})[0],
    logits(dataclasses.replace(config, lora=None), without, tokens),
    atol=1e-5,
  )
  assert config.evaluated().lora == Lora(rank=3, dropout=0.0)


def zeroed(params):
  return jax.tree_util.tree_map_with_path(lambda path, x: 0 * x if path[-1].key == 'lora_b' else x, params)


def test_on_a_mesh_it_is_the_same():
  config = shrunk('llama2_70b', lora=Lora(rank=4))
  placement = Placement(make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2}))
  params = parameters(config)
  placed = jax.device_put(params, placement.params(params))
  np.testing.assert_allclose(
    logits(config, placed, random_tokens()), logits(config, params, random_tokens()), atol=2e-4
  )


def test_written_and_read_and_refused():
  config = shrunk('gpt2_small', lora=Lora(rank=4, targets='query|value'))
  assert from_config(to_config(config)) == config
  for text in ('lora(rank=0)', "lora(targets='(')", 'lora(dropout=1)', 'lora(ranks=1)'):
    with pytest.raises(UserError, match=r'config\.model\.lora'):
      part('lora', text)
