"""On a mesh that cuts rows, a model says and learns the same as on one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models.attention import Banded, Dense, Fixed, Strided
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.masks import Causal, Prefix
from gpt_jax.models.positions import Alibi, Rotary
from gpt_jax.models.softmax import FEW
from gpt_jax.objectives.likelihood import next_token_loss
from gpt_jax.sharding import Placement, make_mesh
from tests.models.layouts import random_layout
from tests.models.small import shrunk

LENGTH = 64
MODELS = {
  'grouped': {},
  'banded and dense': {'attention': (Dense(), Banded(8)), 'num_layers': 2},
  'far parts': {'attention': (Strided(8), Fixed(8, 2)), 'num_layers': 2},
  'prefix, alibi': {'attention': (Dense(Causal() | Prefix()),), 'rotation': None, 'score_bias': Alibi()},
  'in chunks': {'attention_kernel': 'chunked'},
}
MESH = {'fsdp': 2, 'tensor': 2, 'sequence': 2}


def model_of(case):
  return LanguageModel(dataclasses.replace(shrunk('llama2_70b', rotation=Rotary()), **MODELS[case]))


def batch():
  """Packed and padded rows, one token longer than what a model reads of them."""
  layout = random_layout(1, 4, LENGTH + 1)
  tokens = jax.random.randint(jax.random.key(0), (4, LENGTH + 1), 0, 20)
  return {'tokens': tokens, 'weights': (layout.segment > 0).astype(jnp.float32), 'layout': layout}


@pytest.mark.parametrize(
  ('case', 'sizes'), [('grouped', {'data': 2, 'sequence': 4}), *((case, MESH) for case in MODELS)]
)
def test_rows_cut_over_devices_are_as_if_whole(case, sizes):
  model, given = model_of(case), batch()
  params = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 1), int))
  loss = lambda params, given: next_token_loss(model)(params, given, jax.random.key(0))[0].value
  want = jax.jit(jax.value_and_grad(loss))(params, given)
  placement = Placement(make_mesh(sizes))
  placed = jax.device_put(params, placement.params(params))
  with jax.set_mesh(placement.mesh):
    found = jax.jit(jax.value_and_grad(loss))(placed, placement.batch(given))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, want)


def test_each_device_has_a_part_of_a_row_and_its_scores():
  """Shapes inside: an eighth of the queries against all keys, and hidden states of an eighth of a row.

  The rows are longer than the others, as a part of few queries is attended to on a CPU without XLA's seeing its scores.
  """
  model, length = model_of('grouped'), 16 * FEW
  config = model.config
  params = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 1), int))
  placement = Placement(make_mesh({'sequence': 8}))
  with jax.set_mesh(placement.mesh):
    run = jax.jit(lambda params, tokens: model.apply(params, tokens, method='features')[0])
    lowered = run.lower(params, jnp.zeros((4, length), int))
    hidden = lowered.compile().output_shardings
  heads = f'{config.num_kv_heads}x{config.num_heads // config.num_kv_heads}'
  assert f'tensor<4x{heads}x{length // 8}x{length}xf32>' in lowered.as_text()
  assert hidden.shard_shape((4, length, config.model_dim)) == (4, length // 8, config.model_dim)


def test_without_a_mesh_nothing_is_cut():
  model, given = model_of('grouped'), batch()
  params = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 1), int))
  assert 'shard_map' not in str(jax.make_jaxpr(model.apply)(params, given['tokens'][:, :LENGTH]))
