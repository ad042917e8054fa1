"""Optimisers, against optax's own, by matrix, and against loops."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt_jax.training.optimizers import averaged, decay_mask, make_optimizer, without_frozen
from gpt_jax.types import Mean, UserError

LAYERS, WIDTH, HIDDEN, HEADS, HEAD = 3, 8, 12, 2, 4


def stacked():
  shapes = {
    'embed': {'embedding': (11, WIDTH)},
    'positions': {'table': (5, WIDTH)},
    'head': {'kernel': (WIDTH, 11)},
    'norm_final': {'scale': (WIDTH,)},
    'blocks': {
      'block_0': {
        'attention': {
          'query': {'kernel': (LAYERS, WIDTH, HEADS, HEAD), 'bias': (LAYERS, HEADS, HEAD)},
          'out': {'kernel': (LAYERS, HEADS, HEAD, WIDTH), 'bias': (LAYERS, WIDTH)},
        },
        'mlp': {'up': {'kernel': (LAYERS, WIDTH, HIDDEN)}, 'down': {'kernel': (LAYERS, HIDDEN, WIDTH)}},
        'norm_mlp': {'scale': (LAYERS, WIDTH), 'bias': (LAYERS, WIDTH)},
      }
    },
  }
  generator = np.random.default_rng(0)
  draw = lambda shape: jnp.asarray(generator.normal(size=shape), jnp.float32)
  return jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


def looped(params):
  """The same parameters, each layer's in its own scope."""
  layers = {
    f'layers_{layer}': jax.tree.map(lambda array, layer=layer: array[layer], params['blocks'])
    for layer in range(LAYERS)
  }
  return {**{name: value for name, value in params.items() if name != 'blocks'}, **layers}


def follow(optimizer, params, steps):
  """Parameters after some steps along gradients that change from step to step."""

  @jax.jit
  def step(params, state, number):
    gradients = jax.tree.map(lambda array: jnp.sin(array * (number + 2)), params)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  state = jax.jit(optimizer.init)(params)
  for number in range(steps):
    params, state = step(params, state, number)
  return params


def trained(config, params, steps=3):
  return follow(make_optimizer({'learning_rate': 0.1, 'schedule': 'constant', **config}, steps), params, steps)


def assert_close(ours, theirs):
  for (path, left), right in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(left, right, atol=2e-5, err_msg=str(path))


def test_adamw_is_optax_adamw():
  params = stacked()
  ours = trained({'clip_norm': 0.5, 'weight_decay': 0.3, 'b2': 0.9, 'eps': 1e-3}, params)
  decayed = {'embed', 'positions', 'head'}
  mask = {name: name in decayed for name in params}
  mask['blocks'] = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params['blocks'])
  theirs = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.1, 0.9, 0.9, 1e-3, weight_decay=0.3, mask=mask))
  assert_close(ours, follow(theirs, params, 3))


@pytest.mark.parametrize('name', ['adamw', 'lion', 'muon', 'sgd'])
def test_stacked_layers_learn_like_single_ones(name):
  params = stacked()
  together = trained({'name': name, 'clip_norm': 0.0}, params)
  apart = trained({'name': name, 'clip_norm': 0.0}, looped(params))
  assert_close(looped(together), apart)


def test_muon_sees_matrices():
  """Each update is a near-orthogonal matrix of the stated shape; by its singular values, from numpy."""
  params = stacked()
  updated = trained({'name': 'muon', 'clip_norm': 0.0, 'weight_decay': 0.0}, params, steps=1)
  block, before = updated['blocks']['block_0'], params['blocks']['block_0']
  matrices = {
    (WIDTH, HEADS * HEAD): block['attention']['query']['kernel'] - before['attention']['query']['kernel'],
    (WIDTH, HIDDEN): block['mlp']['up']['kernel'] - before['mlp']['up']['kernel'],
    (HIDDEN, WIDTH): block['mlp']['down']['kernel'] - before['mlp']['down']['kernel'],
  }
  out = block['attention']['out']['kernel'] - before['attention']['out']['kernel']
  for (rows, columns), change in [*matrices.items(), ((HEADS * HEAD, WIDTH), out)]:
    for matrix in np.asarray(change).reshape(LAYERS, rows, columns):
      values = np.linalg.svd(matrix, compute_uv=False) / (0.1 * 0.2 * np.sqrt(max(rows, columns)))
      assert values.min() > 0.3 and values.max() < 1.3, (rows, columns)
  # The rest goes by Adam: the first step of each number is the learning rate.
  for name in ('embed', 'head', 'positions', 'norm_final'):
    for new, old in zip(jax.tree.leaves(updated[name]), jax.tree.leaves(params[name]), strict=True):
      np.testing.assert_allclose(np.abs(new - old), 0.1, rtol=1e-3)


def test_muon_takes_each_of_medusas_heads_for_a_matrix():
  heads = {'residual_kernel': jnp.zeros((3, 8, 8)), 'residual_bias': jnp.zeros((3, 8))}
  optimizer = make_optimizer({'name': 'muon', 'learning_rate': 0.1, 'clip_norm': 0.0, 'weight_decay': 0.0}, 1)
  gradient = jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape), heads)
  updates, _ = optimizer.update(gradient, optimizer.init(heads), heads)
  for update in np.asarray(updates['residual_kernel']):
    values = np.linalg.svd(update, compute_uv=False) / (0.1 * 0.2 * np.sqrt(8))
    assert values.min() > 0.3 and values.max() < 1.3
  np.testing.assert_allclose(np.abs(updates['residual_bias']), 0.1, rtol=1e-3)


def test_decay_is_of_kernels_and_embeddings():
  params = stacked()
  none = trained({'weight_decay': 0.0, 'clip_norm': 0.0}, params, steps=1)
  decayed = trained({'weight_decay': 0.5, 'clip_norm': 0.0}, params, steps=1)
  for (path, left), right, start in zip(
    jax.tree_util.tree_leaves_with_path(decayed), jax.tree.leaves(none), jax.tree.leaves(params), strict=True
  ):
    rate = 0.05 if path[-1].key in ('kernel', 'embedding', 'table') else 0.0
    np.testing.assert_allclose(right - left, rate * start, atol=1e-6, err_msg=str(path))


def test_decay_mask_by_any_pattern():
  mask = decay_mask('mlp/.*kernel$')(stacked())
  assert mask['blocks']['block_0']['mlp']['up']['kernel']
  assert not mask['blocks']['block_0']['attention']['query']['kernel']
  with pytest.raises(UserError, match=r'optimizer.decay_mask=.* is no regular expression'):
    decay_mask('(kernel')


def test_clip_is_of_the_whole_gradient():
  params = {'a': jnp.asarray([3.0]), 'b': jnp.asarray([4.0])}
  fields = {'name': 'sgd', 'momentum': 0.0, 'learning_rate': 1.0, 'schedule': 'constant', 'weight_decay': 0.0}
  optimizer = make_optimizer(fields, 1)
  updates, _ = optimizer.update(params, optimizer.init(params), params)
  np.testing.assert_allclose([updates['a'][0], updates['b'][0]], [-0.6, -0.8], rtol=1e-6)


def test_adafactor_keeps_factors():
  """Of a matrix it holds a row and a column; the first step has the parameter's size times the rate."""
  params = {'mlp': {'up': {'kernel': jnp.asarray(np.random.default_rng(0).normal(size=(2, 128, 256)), jnp.float32)}}}
  fields = {'name': 'adafactor', 'learning_rate': 0.01, 'schedule': 'constant', 'weight_decay': 0.0, 'clip_norm': 0.0}
  optimizer = make_optimizer(fields, 1)
  state = optimizer.init(params)
  assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 2 * (128 + 256) + 16
  updates, _ = optimizer.update(params, state, params)
  root_mean_square = lambda tree: float(np.sqrt(np.square(np.asarray(tree['mlp']['up']['kernel'])).mean()))
  assert root_mean_square(updates) == pytest.approx(0.01 * root_mean_square(params), rel=0.05)


def test_average_against_a_loop():
  params = {'kernel': jnp.asarray([1.0, -2.0])}
  optimizer = make_optimizer({'learning_rate': 0.1, 'ema': 0.6}, 20)
  plain = make_optimizer({'learning_rate': 0.1}, 20)
  state, other, expected = optimizer.init(params), plain.init(params), np.asarray(params['kernel'])
  unaveraged = params
  for number in range(1, 20):
    updates, state = optimizer.update(params, state, params)
    params = optax.apply_updates(params, updates)
    updates, other = plain.update(unaveraged, other, unaveraged)
    unaveraged = optax.apply_updates(unaveraged, updates)
    keep = min(0.6, (1 + number) / (10 + number))
    expected = keep * expected + (1 - keep) * np.asarray(unaveraged['kernel'])
  np.testing.assert_array_equal(params['kernel'], unaveraged['kernel'])
  np.testing.assert_allclose(averaged(state)['kernel'], expected, rtol=1e-5)
  assert averaged(other) is None


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_rates_by_path(name):
  """What is frozen stays to the last bit and has no moments; a factor scales the whole update; ema averages all."""
  params = stacked()
  rates = [('embed/', 0.0), ('norm', 3.0), ('norm_mlp', 0.0)]
  fields = {'name': name, 'learning_rate': 0.01, 'clip_norm': 0.0, 'weight_decay': 0.1}
  plain, scaled = make_optimizer(fields, 10), make_optimizer({**fields, 'rates': rates, 'ema': 0.5}, 10)
  gradients = jax.tree.map(jnp.sin, params)
  expected, _ = plain.update(gradients, plain.init(params), params)
  state = scaled.init(params)
  updates, state = scaled.update(gradients, state, params)
  factor = lambda path: 0.0 if 'embed' in path else 3.0 if 'norm' in path else 1.0
  for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(ours, factor(jax.tree_util.keystr(path)) * theirs, rtol=1e-5, err_msg=str(path))
  assert jax.tree.structure(averaged(state)) == jax.tree.structure(params)
  moments = make_optimizer({**fields, 'rates': rates}, 10).init(params)
  assert not any(leaf.shape == params['embed']['embedding'].shape for leaf in jax.tree.leaves(moments))


def test_a_frozen_gradient_is_not_clipped_with_the_rest():
  params = {'a': jnp.ones(4), 'b': jnp.ones(4)}
  fields = {'name': 'sgd', 'learning_rate': 1.0, 'schedule': 'constant', 'clip_norm': 1.0, 'weight_decay': 0.0}
  optimizer = make_optimizer({**fields, 'rates': [('b', 0)]}, 10)
  updates, _ = optimizer.update({'a': jnp.full(4, 0.25), 'b': jnp.full(4, 100.0)}, optimizer.init(params), params)
  np.testing.assert_array_equal(updates['a'], jnp.full(4, -0.25))
  np.testing.assert_array_equal(updates['b'], jnp.zeros(4))
  with pytest.raises(UserError, match=r'optimizer.rates=.* is no list of pairs'):
    make_optimizer({'rates': ['abc', 2.0]}, 10)


def test_a_frozen_gradient_is_not_computed():
  """It is zero, and no product for it is in the program."""
  params = {'learned': jnp.ones((7, 5)), 'frozen': jnp.ones((5, 3))}

  def loss(params, batch, rng):
    return Mean(jnp.sum(jnp.tanh(batch @ params['learned']) @ params['frozen']), jnp.ones(())), {}

  def gradient(loss):
    return jax.jit(jax.grad(lambda params: loss(params, jnp.full((2, 7), 0.1), None)[0].total))

  products = lambda loss: re.findall(r'dot_general.*-> tensor<(\w+)xf32>', gradient(loss).lower(params).as_text())
  still = without_frozen(loss, {'rates': [('frozen', 0)]})
  assert products(loss) == ['2x5', '3x5', '2x5', '5x7'] and products(still) == ['2x5', '2x5', '5x7']
  found = gradient(still)(params)
  np.testing.assert_array_equal(found['frozen'], 0)
  np.testing.assert_allclose(found['learned'], gradient(loss)(params)['learned'], rtol=1e-6)


def test_unknown_names():
  with pytest.raises(UserError, match=r"optimizer.name = 'adam' is unknown; did you mean 'adamw'\?"):
    make_optimizer({'name': 'adam'}, 10)
  with pytest.raises(UserError, match=r"optimizer.wieght_decay is no field; did you mean 'weight_decay'\?"):
    make_optimizer({'wieght_decay': 0.1}, 10)


@pytest.mark.parametrize('eps', [1e-8, 1e-2])
def test_epsilon_hat_by_a_loop(eps):
  """TensorFlow 1's Adam: learning_rate sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps)."""
  gradients = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32) * 1e-2
  config = {'learning_rate': 0.1, 'schedule': 'constant', 'clip_norm': 0, 'weight_decay': 0, 'b1': 0.8, 'b2': 0.9}
  optimizer = make_optimizer({**config, 'eps': eps, 'eps_hat': True}, 5)
  params = {'kernel': jnp.zeros(4)}
  state, m, v, x = optimizer.init(params), np.zeros(4), np.zeros(4), np.zeros(4)
  for t, gradient in enumerate(gradients, 1):
    updates, state = optimizer.update({'kernel': jnp.asarray(gradient)}, state, params)
    params = optax.apply_updates(params, updates)
    m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
    x -= 0.1 * np.sqrt(1 - 0.9**t) / (1 - 0.8**t) * m / (np.sqrt(v) + eps)
    np.testing.assert_allclose(params['kernel'], x, rtol=1e-4)
