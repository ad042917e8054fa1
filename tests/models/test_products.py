"""Products of few rows by our own code: NumPy's numbers, and the same row whatever stands beside it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models import native, products
from gpt_jax.models.layers import affine, unembed
from gpt_jax.models.quantization import Int4, Int8, product

SHAPES = [(1, 1), (3, 5), (8, 16), (36, 49), (130, 64), (64, 1100)]
ROWS = [1, 2, 3, 5, 8, 13, products.FEW + 1]


def drawn(*shape: int) -> np.ndarray:
  return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def near(got, x, kernel) -> None:
  """Within what float32 can lose of the sum of absolute values."""
  x, kernel = np.float64(x), np.float64(kernel)
  assert np.all(np.abs(got - x @ kernel) <= 1e-6 * (np.abs(x) @ np.abs(kernel)) + 1e-30)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('axis', [0, 1])
def test_products_are_numpys(shape, axis):
  kernel = drawn(*shape)
  run = jax.jit(lambda x, kernel: products.dot(x, kernel, axis))
  for rows in ROWS:
    x = drawn(rows, shape[0])
    near(run(x, kernel.T.copy() if axis else kernel), x, kernel)


@pytest.mark.parametrize('form', [Int8(), Int8(12), Int4(12), Int4(36), Int4(None)])
@pytest.mark.parametrize('outputs', [1, 6, 50])
def test_integers_multiply_as_what_they_stand_for(form, outputs):
  stored = form.encode(jnp.asarray(drawn(72, outputs)))
  kernel = np.asarray(form.decode(stored))
  run = jax.jit(lambda x: product(form, x, stored))
  for rows in ROWS:
    x = drawn(rows, 72)
    near(run(x), x, kernel)


@pytest.mark.skipif(not native.compiled(), reason='there is no C++ compiler here')
@pytest.mark.parametrize('kind', ['by input', 'by output', 'int8', 'int4'])
def test_a_row_is_the_same_whatever_stands_beside_it(kind):
  """Bit for bit: so a text does not depend on its batch, nor on the candidates read with it, as far as products go."""
  x, kernel = drawn(products.FEW, 96), jnp.asarray(drawn(96, 72))
  if kind.startswith('by'):
    axis = int(kind == 'by output')
    run = jax.jit(lambda x: products.dot(x, kernel.T if axis else kernel, axis))
  else:
    form = {'int8': Int8(32), 'int4': Int4(32)}[kind]
    run = jax.jit(lambda x: product(form, x, form.encode(kernel)))
  whole = run(x)
  for first, last in [(0, 1), (1, 3), (4, 9), (7, 20), (31, 32)]:
    np.testing.assert_array_equal(run(x[first:last]), whole[first:last])


def test_gradients_and_batching_go_on_as_without():
  x, kernel = jnp.asarray(drawn(3, 16)), jnp.asarray(drawn(16, 8))
  loss = lambda x, kernel: jnp.sum(jnp.sin(unembed(affine(x, kernel, None), kernel)))
  plain = lambda x, kernel: jnp.sum(jnp.sin(x @ kernel @ kernel.T))
  for got, want in zip(jax.grad(loss, (0, 1))(x, kernel), jax.grad(plain, (0, 1))(x, kernel), strict=True):
    np.testing.assert_allclose(got, want, atol=1e-4)
  stacked = jnp.stack([x, 2 * x])
  np.testing.assert_allclose(jax.vmap(products.dot, (0, None))(stacked, kernel), stacked @ kernel, atol=1e-5)


def test_without_it_xla_serves(monkeypatch):
  monkeypatch.setattr(native, 'compiled', lambda: False)
  x, kernel, form = drawn(2, 32), drawn(32, 3), Int8()
  near(jax.jit(functools.partial(products.dot, axis=0))(x, kernel), x, kernel)
  stored = form.encode(jnp.asarray(kernel))
  lowered = jax.jit(lambda x: product(form, x, stored)).lower(x)
  assert 'gpt_jax_by' not in lowered.as_text()
  near(lowered.compile()(x), x, np.asarray(form.decode(stored)))
