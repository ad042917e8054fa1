"""Position encodings: rotary properties and angles by hand, scalings worked out, ALiBi's published slopes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models.positions import (
  Alibi,
  FalconAlibi,
  Learned,
  Learned2D,
  LinearScaling,
  Llama3Scaling,
  NtkScaling,
  Rotary,
  Rotary2D,
  YarnScaling,
)
from gpt_jax.types import left_to_right


def layout_at(position, block=None):
  """Two rows of tokens that stand at `position`, and in a blank at `block`."""
  position = jnp.tile(jnp.asarray(position), (2, 1))
  layout = left_to_right(position)
  return layout.replace(
    position=position, block=layout.block if block is None else jnp.tile(jnp.asarray(block), (2, 1))
  )


def heads(length: int, width: int = 8):
  return jax.random.normal(jax.random.key(0), (2, length, 3, width))


def test_rotary_angle_by_hand():
  """Head of 4 at place 3, theta 100: pairs (0, 2) and (1, 3) turn by 3 and by 3 / sqrt(100)."""
  turn = Rotary(theta=100.0)(layout_at([3]), 4)
  got = turn(jnp.tile(jnp.array([1.0, 2.0, 3.0, 4.0]), (2, 1, 1, 1)))[0, 0, 0]
  cos, sin = np.cos([3.0, 0.3]), np.sin([3.0, 0.3])
  want = [cos[0] - 3 * sin[0], 2 * cos[1] - 4 * sin[1], 3 * cos[0] + sin[0], 4 * cos[1] + 2 * sin[1]]
  np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize(
  'rotation',
  [Rotary(), Rotary(fraction=0.5), Rotary(scaling=LinearScaling(4.0)), Rotary(scaling=NtkScaling(4.0)), Rotary2D()],
)
def test_scores_depend_on_distance_alone(rotation):
  query, key = jnp.tile(heads(1), (1, 6, 1, 1)), jnp.tile(heads(1)[::-1], (1, 6, 1, 1))
  near, far = layout_at(jnp.arange(6), jnp.arange(6)), layout_at(100 + jnp.arange(6), 50 + jnp.arange(6))
  scores = jax.jit(lambda x: jnp.einsum('BTNH,BSNH->BNTS', rotation(x, 8)(query), rotation(x, 8)(key)))
  got = scores(near)
  np.testing.assert_allclose(got, scores(far), atol=2e-4)
  np.testing.assert_allclose(got[..., 1, 0], got[..., 5, 4], atol=1e-5)
  assert np.abs(got[..., 1, 0] - got[..., 5, 0]).max() > 0.01


def test_turning_keeps_lengths_and_place_zero():
  x = heads(5)
  turned = Rotary()(layout_at(jnp.arange(5)), 8)(x)
  np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
  np.testing.assert_array_equal(turned[:, 0], x[:, 0])


def test_fraction_leaves_the_rest_of_a_head():
  x, layout = heads(5), layout_at(jnp.arange(5))
  turned = Rotary(fraction=0.5)(layout, 8)(x)
  np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
  np.testing.assert_array_equal(turned[..., :4], Rotary()(layout, 4)(x[..., :4]))
  assert np.abs(turned[:, 1:, :, :4] - x[:, 1:, :, :4]).min() > 0


def test_two_dimensional_rotary_turns_each_half_by_its_place():
  x = heads(4)
  turned = Rotary2D()(layout_at([0, 1, 2, 2], [0, 0, 0, 1]), 8)(x)
  half = lambda places, x: Rotary()(layout_at(places), 4)(x)
  np.testing.assert_array_equal(turned[..., :4], half([0, 1, 2, 2], x[..., :4]))
  np.testing.assert_array_equal(turned[..., 4:], half([0, 0, 0, 1], x[..., 4:]))


def test_turning_keeps_the_dtype():
  x = heads(5).astype(jnp.bfloat16)
  turned = Rotary()(layout_at(1000 + jnp.arange(5)), 8)(x)
  assert turned.dtype == jnp.bfloat16
  exact = Rotary()(layout_at(1000 + jnp.arange(5)), 8)(x.astype(jnp.float32))
  np.testing.assert_allclose(turned.astype(jnp.float32), exact, atol=0.02)  # angles are not rounded to bfloat16


def test_linear_scaling_divides_places():
  np.testing.assert_allclose(
    Rotary(scaling=LinearScaling(4.0)).frequencies(8), np.array([1.0, 0.1, 0.01, 0.001]) / 4, rtol=1e-6
  )


def test_ntk_scaling_stretches_the_slowest_pair_alone():
  """Head of 8, factor 16: the base grows by 16^(8/6), so the four pairs slow down by 16^(0, 1/3, 2/3, 1)."""
  plain, scaled = Rotary().frequencies(8), Rotary(scaling=NtkScaling(16.0)).frequencies(8)
  np.testing.assert_allclose(plain / scaled, [1.0, 16 ** (1 / 3), 16 ** (2 / 3), 16.0], rtol=1e-6)


def test_llama3_scaling_by_hand():
  """Base 10,000, head of 8, 8192 places first: 1304, 130, 13 and 1.3 turns; 1.3 is between 1 and 4."""
  scaling = Llama3Scaling(factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_length=8192)
  kept = (8192 * 0.001 / (2 * np.pi) - 1) / 3
  want = [1.0, 0.1, 0.01, 0.001 * (kept + (1 - kept) / 8)]
  np.testing.assert_allclose(Rotary(scaling=scaling).frequencies(8), want, rtol=1e-6)
  slow = Rotary(theta=500_000.0).frequencies(8)  # the slowest pair makes 0.07 turns
  np.testing.assert_allclose(Rotary(theta=500_000.0, scaling=scaling).frequencies(8)[-1], slow[-1] / 8, rtol=1e-6)


def test_yarn_scaling_by_hand():
  """Base 10,000, head of 8, 2048 places: pairs that turn 32 times and once are numbers 1.01 and 2.51, so 1 and 3."""
  plain, scaled = Rotary(), Rotary(scaling=YarnScaling(16.0, 2048))
  np.testing.assert_allclose(scaled.frequencies(8), [1.0, 0.1, 0.01 * (0.5 + 0.5 / 16), 0.001 / 16], rtol=1e-6)
  layout = layout_at(jnp.zeros(1, jnp.int32))
  grown = scaled(layout, 8)(heads(1)) / plain(layout, 8)(heads(1))
  np.testing.assert_allclose(grown, 1 + 0.1 * np.log(16), rtol=1e-6)  # scores grow by its square, 1 / t


def test_yarn_scaling_of_a_released_configuration():
  """Base 500 over 32 places, factor 4, fast from 8 turns, a head of 16: what transformers 5.23 makes of them."""
  want = [1.0, 0.34489745, 0.10573712, 0.024312312, 0.01118034, 0.0051414282, 0.002364354, 0.0010872796]
  got = Rotary(theta=500.0, scaling=YarnScaling(4.0, 32, fast=8.0))
  np.testing.assert_allclose(got.frequencies(16), want, rtol=1e-6)
  assert got.scaling.magnitude == pytest.approx(1.138629436111989)


def test_llama3_scaling_of_a_released_configuration():
  """LLaMA-3.2's base, factor and lengths, with a head of 16: the frequencies that transformers 5.23 makes of them."""
  scaling = Llama3Scaling(factor=32.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_length=8192)
  want = [1.0, 0.19392276, 0.03760603, 0.0072926651, 0.00042955671, 8.5702559e-06, 1.6619674e-06, 3.2229329e-07]
  np.testing.assert_allclose(Rotary(theta=500_000.0, scaling=scaling).frequencies(16), want, rtol=1e-6)


def test_alibi_slopes_of_the_paper():
  """Section 3: 1/2 to 1/256 for 8 heads; for 12, those of 8 and then every other of 16's."""
  eight = [2.0**-n for n in range(1, 9)]
  np.testing.assert_allclose(Alibi().slopes(8), eight)
  np.testing.assert_allclose(Alibi().slopes(12), [*eight, 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])
  assert len(Alibi().slopes(1)) == 1


def test_alibi_is_a_slope_times_a_distance():
  layout = layout_at([0, 1, 2, 0])  # a second document begins
  bias = Alibi()(layout, layout, 8, 4)
  assert bias.shape == (2, 8, 4, 4)
  np.testing.assert_allclose(bias[0, 0, 2], [-1.0, -0.5, 0.0, -1.0])
  np.testing.assert_allclose(bias[1, 7, 1], [-1 / 256, 0.0, -1 / 256, -1 / 256])


def test_falcons_alibi_by_hand():
  """Eight heads of 16: half a place over 4. 257 and 301 have no bfloat16, nor has 3 * 2^-0.5, of the ninth of 12."""
  bias = jax.jit(lambda keys: FalconAlibi()(layout_at([0, 1]), keys, 8, 16))(layout_at([0, 3, 257, 301]))
  assert bias.shape == (2, 8, 2, 4)
  np.testing.assert_array_equal(bias[1, 0], [[0.0, 3 / 8, 256 / 8, 300 / 8]] * 2)
  twelve = jax.jit(lambda keys: FalconAlibi()(keys, keys, 12, 1))(layout_at([3]))
  assert twelve[0, 8, 0, 0] == 2.125 and Alibi().slopes(12)[8] * 3 < 2.122


def test_falcons_alibi_is_the_papers_over_the_root_of_the_heads_width():
  """As far as a softmax sees it, and where slopes and places are exact."""
  layout = layout_at(jnp.arange(100))
  causal = jnp.tril(jnp.ones((100, 100), bool))
  weights = lambda bias: jax.nn.softmax(jnp.where(causal, bias, -jnp.inf))
  paper, falcon = (alibi(layout, layout, 4, 4) for alibi in (Alibi(), FalconAlibi()))
  np.testing.assert_allclose(weights(falcon), weights(paper / 2), atol=1e-6)


def test_learned_positions_are_looked_up_by_place():
  layout = layout_at([0, 1, 5, 5], [0, 0, 1, 2])
  one, two = Learned(6), Learned2D(6)
  params = one.init(jax.random.key(0), layout, 4)
  np.testing.assert_array_equal(one.apply(params, layout, 4)[0], params['params']['table'][jnp.array([0, 1, 5, 5])])
  params = two.init(jax.random.key(0), layout, 4)
  text, block = params['params']['table'], params['params']['block_table']
  np.testing.assert_array_equal(two.apply(params, layout, 4)[0, 3], text[5] + block[2])


def test_a_place_beyond_the_table_is_not_a_number():
  layout = left_to_right(jnp.zeros((1, 5), jnp.int32))
  module = Learned(4)
  found = module.apply(module.init(jax.random.key(0), left_to_right(jnp.zeros((1, 2), jnp.int32)), 3), layout, 3)
  assert np.isfinite(found[:, :4]).all() and np.isnan(found[:, 4:]).all()
