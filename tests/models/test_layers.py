"""Linear layers and feed-forward networks against plain formulas, gradients too."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models.layers import GatedMlp, Linear, Mlp, gelu_exact, unembed


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('use_bias', [True, False])
@pytest.mark.parametrize(
  ('features', 'contracted', 'formula'), [(5, 1, 'btnh,ho->btno'), ((5, 2), 2, 'btnh,nhop->btop')]
)
def test_linear_is_its_einsum(features, contracted, formula, use_bias, dtype):
  layer = Linear(features, contracted=contracted, use_bias=use_bias, dtype=dtype)
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 6))
  params = jax.tree.map(lambda p: p + 0.1, layer.init(jax.random.key(1), x))
  cotangent = jax.random.normal(jax.random.key(2), layer.apply(params, x).shape)

  def plain(params, x):
    y = jnp.einsum(formula, x, params['params']['kernel'])
    return y + params['params']['bias'] if use_bias else y

  both = [
    jax.jit(lambda params, x, f=f: jax.value_and_grad(lambda *a: jnp.sum(f(*a) * cotangent), argnums=(0, 1))(params, x))
    for f in (layer.apply, plain)
  ]
  got, want = (f(params, x) for f in both)
  assert {leaf.dtype for leaf in jax.tree.leaves(got[1])} == {jnp.dtype('float32')}
  tolerance = 1e-5 if dtype == 'float32' else 0.02
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * (1 + np.abs(b).max()))
  jax.tree.map(close, got, want)
  assert layer.apply(params, x).dtype == dtype


def test_gelus_by_their_numbers():
  """x Phi(x) at 1 is 0.841345; the tanh form says 0.841192."""
  np.testing.assert_allclose(gelu_exact(jnp.array(1.0)), 0.8413447, rtol=1e-6)
  np.testing.assert_allclose(nn.gelu(jnp.array(1.0)), 0.8411920, rtol=1e-6)


@pytest.mark.parametrize(
  ('mlp', 'names'), [(Mlp(7, gelu_exact), {'up', 'down'}), (GatedMlp(7), {'gate', 'up', 'down'})]
)
def test_feed_forward_is_its_formula(mlp, names):
  x = jax.random.normal(jax.random.key(0), (2, 3, 4))
  params = jax.tree.map(lambda p: p + 0.3, mlp.init(jax.random.key(1), x))['params']
  assert params.keys() == names
  linear = lambda name, x: x @ params[name]['kernel'] + params[name]['bias']
  up = linear('up', x)
  gate = linear('gate', x) if 'gate' in names else None
  hidden = up * jax.scipy.stats.norm.cdf(up) if gate is None else gate / (1 + jnp.exp(-gate)) * up
  np.testing.assert_allclose(mlp.apply({'params': params}, x), linear('down', hidden), atol=1e-5)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_unembedding_is_its_einsum(dtype):
  x = jax.random.normal(jax.random.key(0), (2, 3, 4), dtype)
  table = jax.random.normal(jax.random.key(1), (7, 4))
  cotangent = jax.random.normal(jax.random.key(2), (2, 3, 7))
  loss = lambda f: jax.value_and_grad(lambda x, table: jnp.sum(f(x, table) * cotangent), argnums=(0, 1))
  got = loss(unembed)(x, table)
  want = loss(lambda x, table: jnp.einsum('btd,vd->btv', x.astype(jnp.float32), table))(x, table)
  assert unembed(x, table).dtype == jnp.float32 and got[1][0].dtype == dtype and got[1][1].dtype == jnp.float32
  tolerance = 1e-5 if dtype == 'float32' else 0.02
  close = lambda a, b: np.testing.assert_allclose(
    a.astype(jnp.float32), b.astype(jnp.float32), atol=tolerance * (1 + float(jnp.abs(b).max()))
  )
  jax.tree.map(close, got, want)
