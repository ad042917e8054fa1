"""Quantised kernels: numbers by hand, bounds of the error, and every family against itself with what was stored."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models.families import FAMILIES
from gpt_jax.models.heads import LanguageModel, parameter_shapes
from gpt_jax.models.layers import Linear
from gpt_jax.models.quantization import Int4, Int8, dequantize, product, quantize
from gpt_jax.models.transformer import TransformerConfig, unstack
from gpt_jax.sharding import Placement, make_mesh
from gpt_jax.types import Params, UserError
from tests.models.small import logits, parameters, random_tokens, shrunk

KINDS = {'int8': Int8(), 'int8 by group': Int8(16), 'int4': Int4(16), 'int4, one group': Int4(None)}


def quantized(config: TransformerConfig, quantization: Int8 | Int4) -> tuple[TransformerConfig, Params]:
  """The model and its parameters with this quantisation."""
  config = dataclasses.replace(config, quantization=quantization)
  params = parameters(dataclasses.replace(config, quantization=None))
  return config, quantize(params, quantization, parameter_shapes(LanguageModel(config)))


def restored(config: TransformerConfig, params: Params) -> Params:
  """The parameters in float32 that quantised ones stand for."""
  plain = dataclasses.replace(config, quantization=None)
  return dequantize(params, config.quantization, parameter_shapes(LanguageModel(plain)))


def kernel(*shape: int) -> jax.Array:
  """Random weights of which one group is zero, one is large and one small."""
  drawn = jax.random.normal(jax.random.key(0), shape)
  return drawn.at[:16, 0].set(0).at[16:32, 1].mul(30).at[16:32, 2].mul(0.01)


# ---- by hand --------------------------------------------------------------------------------------------------------


def test_int8_by_hand():
  """Columns with the largest weights 1.27 and 2.54 have the scales 0.01 and 0.02."""
  stored = Int8().encode(jnp.array([[1.27, -0.5], [-0.64, 2.54]]))
  np.testing.assert_array_equal(stored['values'], [[127, -64], [-25, 127]])
  np.testing.assert_allclose(stored['scale'], [[0.01], [0.02]], rtol=1e-6)
  by_group = Int8(1).encode(jnp.array([[1.27, -0.5], [-0.64, 2.54]]))
  np.testing.assert_array_equal(by_group['values'], [[127, -127], [-127, 127]])
  np.testing.assert_allclose(by_group['scale'], np.array([[1.27, 0.64], [0.5, 2.54]]) / 127, rtol=1e-6)


def test_int4_by_hand():
  """The scale is 1.26 / 126; 1.26 and 0.54 are 7 and 3 times 18 of it, 0.21 and -0.09 are 7 and -3 times 3."""
  stored = Int4(2).encode(jnp.array([[1.26], [0.54], [0.21], [-0.09]]))
  np.testing.assert_allclose(stored['scale'], [[0.01]], rtol=1e-6)
  np.testing.assert_array_equal(stored['multiples'], [[18, 3]])
  np.testing.assert_array_equal(stored['nibbles'], [[7 + 16 * 3, 7 + 16 * 13 - 256]])
  np.testing.assert_array_equal(Int4(2).integers(stored), [[126, 54, 21, -9]])


def test_the_halves_of_a_group_share_bytes():
  """Weights 7, 1, -2, 3 of one group: 7 lies with -2, 1 with 3."""
  stored = Int4(4).encode(jnp.array([[7.0], [1.0], [-2.0], [3.0]]))
  np.testing.assert_array_equal(stored['nibbles'], [[7 + 16 * 14 - 256, 1 + 16 * 3]])
  np.testing.assert_array_equal(stored['multiples'], [[18]])


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['int8', 'int8 by group'])
def test_int8_is_off_by_half_a_scale_at_most(name):
  weights, form = kernel(48, 6), KINDS[name]
  stored = form.encode(weights)
  scale = np.repeat(stored['scale'].T, 48 // stored['scale'].shape[1], axis=0)
  assert np.all(np.abs(form.decode(stored) - weights) <= scale * 0.50001)
  assert np.abs(stored['values']).max() == 127


@pytest.mark.parametrize('name', ['int4', 'int4, one group'])
def test_int4_has_no_larger_error_than_the_least_unit_that_cuts_nothing(name):
  """Which is off by half a unit at most; it may be so by more only where the largest weights are cut."""
  weights, form = np.asarray(kernel(48, 6)), KINDS[name]
  stored = form.encode(jnp.asarray(weights))
  multiples = np.asarray(stored['multiples']).T
  groups = lambda x: np.asarray(x).reshape(len(multiples), -1, 6)
  scale = np.asarray(stored['scale'])[:, 0]
  least = np.maximum(1, np.ceil(np.abs(groups(weights)).max(1) / scale / 7 - 1e-4))[:, None] * scale
  plain = np.round(groups(weights) / least) * least
  assert np.all(np.abs(plain - groups(weights)) <= least * 0.50001)
  error = groups(form.decode(stored)) - groups(weights)
  assert np.all((error**2).sum(1) <= ((plain - groups(weights)) ** 2).sum(1) * 1.0001)
  unit = multiples[:, None] * scale
  assert np.all((np.abs(error) <= unit * 0.50001) | (np.abs(groups(weights)) > unit * 7))
  assert stored['multiples'].min() >= 1 and stored['multiples'].max() == 18


@pytest.mark.parametrize('name', KINDS)
def test_what_was_decoded_is_encoded_as_the_same_numbers(name):
  form = KINDS[name]
  once = form.decode(form.encode(kernel(48, 6)))
  np.testing.assert_allclose(form.decode(form.encode(once)), once, rtol=1e-6)


@pytest.mark.parametrize('rows', [1, 2, 5, 40])
@pytest.mark.parametrize('name', KINDS)
def test_products_are_those_with_the_decoded_kernel(name, rows):
  form, x = KINDS[name], jax.random.normal(jax.random.key(1), (rows, 48)).at[0, 3].mul(5)
  stored = form.encode(kernel(48, 6))
  got = jax.jit(functools.partial(product, form))(x, stored)
  np.testing.assert_allclose(got, x @ form.decode(stored), atol=1e-4)


@pytest.mark.parametrize('name', KINDS)
def test_a_row_of_zeros_and_one_of_no_numbers(name):
  form = KINDS[name]
  got = product(form, jnp.zeros((2, 32)).at[1, 0].set(jnp.nan), form.encode(jnp.ones((32, 1))))
  assert got[0] == 0 and np.isnan(got[1]), 'it must not be hidden'


@pytest.mark.parametrize('name', KINDS)
def test_gradient_by_x_is_that_of_the_decoded_kernel(name):
  form = KINDS[name]
  stored, x = form.encode(kernel(48, 6)), jnp.ones((2, 48))
  got = jax.grad(lambda x: jnp.sum(product(form, x, stored) * jnp.arange(6.0)))(x)
  np.testing.assert_allclose(got, jnp.tile(form.decode(stored) @ jnp.arange(6.0), (2, 1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', KINDS)
def test_linear_starts_at_its_own_draw(name):
  """`init` of a quantised layer is the draw of a float one, quantised; biases and several axes as there."""
  x = jax.random.normal(jax.random.key(2), (2, 3, 4, 8))
  plain = Linear((5, 2), contracted=2)
  layer = plain.copy(quantization=KINDS[name])
  params = plain.init(jax.random.key(0), x)
  got = layer.init(jax.random.key(0), x)
  jax.tree.map(np.testing.assert_array_equal, got, quantize(params, KINDS[name], got))
  want = plain.apply(dequantize(got, KINDS[name], params), x)
  np.testing.assert_allclose(layer.apply(got, x), want, atol=1e-5)


# ---- models ---------------------------------------------------------------------------------------------------------

ALIKE = {repr(shrunk(family)): family for family in reversed(FAMILIES)}
"""One family of each small form: sizes alone differ within."""


@pytest.mark.parametrize('family', ALIKE.values())
def test_every_family_is_itself_with_what_is_stored(family):
  config, params = quantized(shrunk(family), Int4(16))
  want = logits(shrunk(family), restored(config, params), random_tokens())
  np.testing.assert_allclose(logits(config, params, random_tokens()), want, atol=1e-4)
  exact = logits(shrunk(family), parameters(shrunk(family)), random_tokens())
  assert 1e-3 < np.abs(want - exact).max() < 0.5 * np.abs(exact).max()


@pytest.mark.parametrize('kind', ['int8', 'int4'])
def test_stacked_is_unstacked(kind):
  config, params = quantized(shrunk('llama2_70b'), KINDS[kind])
  apart = dataclasses.replace(config, stacked=False)
  plain = unstack(parameters(shrunk('llama2_70b')))
  alone = quantize(plain, config.quantization, parameter_shapes(LanguageModel(apart)))
  jax.tree.map(np.testing.assert_array_equal, alone, unstack(params))
  got, want = logits(apart, alone, random_tokens()), logits(config, params, random_tokens())
  np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize(('kind', 'bits'), [('int8', 8), ('int4', 4)])
@pytest.mark.parametrize('family', ['gpt2_small', 'chatglm2_6b'])
def test_kernels_shrink_and_nothing_else_is_touched(family, kind, bits):
  """At the sizes of the paper but for depth, by shapes alone: eight or four bits a weight and a few for scales."""
  config = dataclasses.replace(FAMILIES[family], num_layers=1)
  shapes = parameter_shapes(LanguageModel(config))
  form = {'int8': Int8(), 'int4': Int4()}[kind]
  like = parameter_shapes(LanguageModel(dataclasses.replace(config, quantization=form)))
  got = jax.eval_shape(lambda params: quantize(params, form, like), shapes)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), got) == jax.tree.map(lambda x: (x.shape, x.dtype), like)
  kernels = others = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(got):
    if 'kernel' in [key.key for key in path]:
      kernels += leaf.size * leaf.dtype.itemsize
    else:
      others += leaf.size * leaf.dtype.itemsize
  before = [(path[-1].key, 4 * leaf.size) for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)]
  assert others == sum(size for name, size in before if name != 'kernel')
  assert bits / 32 < kernels / sum(size for name, size in before if name == 'kernel') < (bits + 0.3) / 32


def test_embeddings_norms_and_biases_are_the_same_arrays():
  _, params = quantized(shrunk('chatglm2_6b'), Int8())
  old = parameters(shrunk('chatglm2_6b'))['params']
  new = params['params']
  assert new['unembed'] == old['unembed'] and new['transformer']['embed'] == old['transformer']['embed']
  blocks = [tree['transformer']['blocks']['block_0'] for tree in (old, new)]
  assert blocks[0]['norm_mlp']['scale'] is blocks[1]['norm_mlp']['scale']
  assert blocks[0]['attention']['query']['bias'] is blocks[1]['attention']['query']['bias']
  assert set(blocks[1]['attention']['query']['kernel']) == {'values', 'scale'}


@pytest.mark.parametrize('kind', ['int8', 'int4'])
def test_on_a_mesh_it_is_the_same(kind):
  """Every array has a rule, kernels lie in parts, and the logits are those of one device."""
  config, params = quantized(shrunk('llama2_70b'), KINDS[kind])
  placement = Placement(make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2}))
  placed = jax.device_put(params, placement.params(params))
  mlp = placed['params']['transformer']['blocks']['block_0']['mlp']
  whole = {'up': (48, 32), 'down': (32, 48)} if 'int8' in kind else {'up': (48, 16), 'down': (32, 24)}
  for name, shape in whole.items():
    stored = mlp[name]['kernel']['values' if 'int8' in kind else 'nibbles']
    assert stored.shape == (2, *shape) and not stored.sharding.is_fully_replicated
    assert stored.addressable_shards[0].data.shape == (2, shape[0] // 2, shape[1] // 2)
  got = logits(config, placed, random_tokens())
  np.testing.assert_allclose(got, logits(config, params, random_tokens()), atol=2e-4)


def test_in_bfloat16():
  config, params = quantized(dataclasses.replace(shrunk('llama2_70b'), dtype='bfloat16'), Int4(16))
  assert logits(config, params, random_tokens()).dtype == jnp.float32
  want = logits(dataclasses.replace(config, quantization=None), restored(config, params), random_tokens())
  assert np.abs(logits(config, params, random_tokens()) - want).max() < 0.06 * np.abs(want).max()


def test_what_does_not_fit_is_refused():
  with pytest.raises(UserError, match='group = 20 does not divide the 32 inputs of a linear layer'):
    parameter_shapes(LanguageModel(shrunk('gpt2_small', quantization=Int8(20))))
  odd = FAMILIES['gpt2_small'].mlp.copy(hidden=49)
  with pytest.raises(UserError, match='int4 takes inputs in pairs, and a group has 49; use int8'):
    parameter_shapes(LanguageModel(shrunk('gpt2_small', mlp=odd, quantization=Int4(None))))
