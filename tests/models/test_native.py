"""Our own code for CPUs: that it is compiled, and its attention: NumPy's numbers, whatever stands beside a query."""

import os
import pathlib

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models import native, products, softmax
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.transformer import empty_cache
from tests.models.small import shrunk


@pytest.mark.skipif(not (native.compiled() or 'CI' in os.environ), reason='there is no C++ compiler here')
def test_it_is_compiled_here():
  """Else the other tests show nothing."""
  assert native.compiled()
  lowered = jax.jit(products.dot).lower(jnp.ones((2, 4)), jnp.ones((4, 3))).as_text()
  assert 'gpt_jax_by_input' in lowered and 'dot_general' not in lowered
  lowered = jax.jit(softmax.softmax_attention).lower(*drawn(1, 2, 2, 2, 4, 9)).as_text()
  assert 'gpt_jax_attend' in lowered and 'dot_general' not in lowered


@pytest.mark.parametrize('broken', ['no compiler', 'a compiler that fails', 'no folder'])
def test_without_a_compiler_it_is_said(broken, tmp_path, monkeypatch):
  (tmp_path / 'file').touch()
  failing = """sh -c 'echo "error: no such thing" >&2; exit 1'"""
  monkeypatch.setenv(
    'CXX', {'no compiler': str(tmp_path / 'none'), 'a compiler that fails': failing}.get(broken, 'c++')
  )
  monkeypatch.setenv('GPT_JAX_CACHE', str(tmp_path / ('file' if broken == 'no folder' else 'cache')))
  said = []
  monkeypatch.setattr(logging, 'warning', lambda text, *more: said.append(text % more))
  assert not native.compiled.__wrapped__()
  assert len(said) == 1 and 'left to XLA' in said[0] and '\n' not in said[0]
  assert {'no compiler': 'none', 'a compiler that fails': 'no such thing', 'no folder': 'file'}[broken] in said[0]
  assert not list(pathlib.Path(tmp_path).rglob('*.so'))


@pytest.mark.skipif(not native.compiled(), reason='there is no C++ compiler here')
def test_a_cached_step_works_out_its_angles_once():
  """Not in each layer, and not for each head."""
  model = LanguageModel(shrunk('llama2_7b', num_layers=3, stacked=False))
  tokens, cache = jnp.zeros((2, 3), int), empty_cache(model.config, 2, 16)
  params = jax.jit(model.init)(jax.random.key(0), tokens)
  read = lambda params: model.apply(params, tokens, None, cache, method='features')[0]
  program = jax.jit(read).lower(params).compile().as_text()
  assert program.count(' cosine(') == program.count(' sine(') == 1


# ---- attention of few queries ---------------------------------------------------------------------------------------


def drawn(batch: int, length: int, heads: int, shared: int, width: int, keys: int, spread: float = 1.0):
  """Queries, keys, values and what is seen: every query sees its last key and a third of the others, but none of the
  keys from 128 to 256, which are a piece."""
  rng = np.random.default_rng(keys)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  visible = rng.random((batch, length, keys)) < 1 / 3
  visible[..., 128:256] = False
  visible[..., keys - 1] = True
  query = spread * normal(batch, length, heads, width)
  return query, normal(batch, keys, shared, width), normal(batch, keys, shared, width), visible


def by_numpy(query, key, value, visible):
  """By the definition, in float64."""
  group = query.shape[2] // key.shape[2]
  query, key, value = np.float64(query), *(np.repeat(np.float64(x), group, axis=2) for x in (key, value))
  scores = np.einsum('btnh,bsnh->btns', query, key) / np.sqrt(query.shape[-1])
  scores = np.where(visible[:, :, None], scores, -np.inf)
  sums = np.log(np.sum(np.exp(scores - scores.max(-1, keepdims=True)), axis=-1)) + scores.max(-1)
  return np.einsum('btns,bsnh->btnh', np.exp(scores - sums[..., None]), value), sums


SHAPES = [(1, 1, 3, 1, 64, 500), (2, 8, 6, 2, 16, 130), (3, 2, 2, 2, 20, 7), (1, 32, 4, 1, 7, 129), (1, 1, 1, 1, 1, 1)]


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('spread', [1.0, 30.0])
def test_attention_is_numpys(shape, spread):
  """Wide scores, too: most of their exponentials are 0."""
  given = drawn(*shape, spread)
  for got, want in zip(jax.jit(softmax.softmax_attention)(*given), by_numpy(*given), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5 * spread)


def test_who_sees_nothing_finds_0_and_has_the_least_sum():
  query, key, value, visible = drawn(2, 2, 2, 1, 8, 30)
  visible[0, 1] = False
  out, sums = jax.jit(softmax.softmax_attention)(query, key, value, visible)
  assert np.all(np.isfinite(out)) and np.all(np.isfinite(sums))
  assert np.all(sums[0, 1] <= softmax.LEAST / 2) and np.all(np.abs(np.delete(sums.reshape(4, -1), 1, axis=0)) < 100)


@pytest.mark.skipif(not native.compiled(), reason='there is no C++ compiler here')
def test_a_query_finds_the_same_whatever_is_beside_it():
  """Bit for bit: queries of its row, other rows, and room behind the keys that it sees."""
  query, key, value, visible = drawn(3, 8, 6, 2, 20, 300)
  attend = jax.jit(softmax.softmax_attention)
  whole = attend(query, key, value, visible)
  some = attend(query[1:2, 3:5], key[1:2], value[1:2], visible[1:2, 3:5])
  for got, want in zip(some, whole, strict=True):
    np.testing.assert_array_equal(got, want[1:2, 3:5])
  more = lambda x: jnp.pad(x, [(0, 0), (0, 212), (0, 0), (0, 0)], constant_values=7)
  roomy = attend(query, more(key), more(value), np.pad(visible, [(0, 0), (0, 0), (0, 212)]))
  for got, want in zip(roomy, whole, strict=True):
    np.testing.assert_array_equal(got, want)


def test_gradients_batching_and_other_dtypes_go_on_as_without(monkeypatch):
  query, key, value, visible = drawn(2, 4, 4, 2, 8, 20)
  attend = lambda *given: softmax.softmax_attention(*given, visible)[0]
  given = query, key, value
  results = lambda: (
    attend(*given),
    jax.grad(lambda *given: jnp.sum(jnp.sin(attend(*given))), (0, 1, 2))(*given),
    jax.vmap(attend)(*(jnp.stack([x, -x]) for x in given)),
    attend(*(x.astype(jnp.bfloat16) for x in given)),
  )
  ours = results()
  monkeypatch.setattr(native, 'compiled', lambda: False)
  jax.tree.map(
    lambda got, want: np.testing.assert_allclose(np.float32(got), np.float32(want), atol=1e-5), ours, results()
  )
