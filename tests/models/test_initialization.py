"""How weights begin: the spread of every layer, by part."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models.deepnorm import DeepNet, Glm
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.initialization import Normal, ScaledNormal, Xavier
from gpt_jax.models.layers import GatedMlp
from gpt_jax.models.transformer import TransformerConfig

# Two layers, 128 wide; 4 query heads and 2 key heads of 32; feed-forward 256.
CONFIG = TransformerConfig(
  vocab_size=500, num_layers=2, model_dim=128, num_heads=4, num_kv_heads=2, mlp=GatedMlp(256), tie_embeddings=False
)
EVERYWHERE = dict.fromkeys(('query', 'key', 'value', 'out', 'gate', 'up', 'down', 'embed', 'unembed'), 0.02)
XAVIER = {  # sqrt(2 / (inputs + outputs)); half as much for values, outputs and the MLP
  'query': (2 / (128 + 128)) ** 0.5, 'key': (2 / (128 + 64)) ** 0.5, 'value': (2 / (128 + 64)) ** 0.5 / 2,
  'out': (2 / (128 + 128)) ** 0.5 / 2, 'gate': (2 / (128 + 256)) ** 0.5 / 2, 'up': (2 / (128 + 256)) ** 0.5 / 2,
  'down': (2 / (256 + 128)) ** 0.5 / 2, 'embed': 0.02, 'unembed': 0.02,
}  # fmt: skip


def begun(cfg):
  """Freshly made weights, by the name of their layer."""
  params = jax.jit(LanguageModel(cfg).init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {(path[-2].key, path[-1].key): np.asarray(x) for path, x in leaves}


@pytest.mark.parametrize(
  ('init', 'stddevs'),
  [
    (Normal(0.02), EVERYWHERE),
    (ScaledNormal(0.02), EVERYWHERE | {'out': 0.01, 'down': 0.01}),  # 1 / sqrt(2 L) = 1 / 2
    (Xavier(gain=0.5), XAVIER),
    (Xavier(gain=Glm()), XAVIER),  # of two layers 1 / sqrt(4)
  ],
)
def test_spread_of_each_layer(init, stddevs):
  weights = begun(dataclasses.replace(CONFIG, init=init))
  for name, stddev in stddevs.items():
    kernel = weights[name, 'embedding' if 'embed' in name else 'kernel']
    np.testing.assert_allclose(kernel.std(), stddev, rtol=0.03, err_msg=name)
    assert abs(kernel.mean()) < 0.03 * stddev
    if 'embed' not in name:
      assert abs(np.corrcoef(kernel[0].ravel(), kernel[1].ravel())[0, 1]) < 0.05, 'each layer has its own'
  assert all(not x.any() for (_, kind), x in weights.items() if kind == 'bias')
  assert all((x == 1).all() for (_, kind), x in weights.items() if kind == 'scale')


def test_looped_layers_begin_apart_too():
  weights = jax.jit(LanguageModel(dataclasses.replace(CONFIG, stacked=False)).init)(
    jax.random.key(0), jnp.zeros((1, 4), jnp.int32)
  )
  first, second = (weights['params']['transformer'][f'blocks_{i}']['block_0']['mlp']['up']['kernel'] for i in (0, 1))
  assert np.abs(first - second).max() > 0.01


def test_the_constants_of_deep_models():
  """GLM-130B's of 70 layers stand in its section 2.1 as (2 N)^(1/2), DeepNet's decoder of 1,000 in its figure 2."""
  assert (Glm().alpha(70), Glm().gain(70)) == (140**0.5, 140**-0.5)
  assert (DeepNet().alpha(1000), DeepNet().gain(1000)) == (2000**0.25, 8000**-0.25)
