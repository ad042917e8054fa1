"""Attention in chunks against all scores at once, values and gradients; and that what nobody sees is left out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models import chunks
from gpt_jax.models.attention import Banded, Dense, Fixed, Strided
from gpt_jax.models.chunks import Chunks, chunked
from gpt_jax.models.masks import Band, Block, Causal, Column, Prefix, SameSegment
from gpt_jax.models.positions import Alibi, FalconAlibi
from gpt_jax.models.softmax import softmax_attention
from gpt_jax.types import left_to_right
from tests.models.heads import ROWS, gradients, heads_of
from tests.models.layouts import random_layout

CHUNKED = {  # mask, length, query heads, key heads, bias
  'causal': (Causal(), 200, 4, 4, None),
  'one chunk': (Causal(), 64, 4, 2, None),
  'shorter than a chunk': (Causal(), 11, 4, 2, None),
  'grouped': (Causal(), 129, 4, 2, None),
  'multi-query, alibi': (Causal(), 150, 4, 1, Alibi()),
  'alibi of absolute places': (Causal(), 150, 4, 4, FalconAlibi()),
  'prefix': (Causal() | Prefix(), 200, 4, 2, None),
  'band': (Causal() & Band(40), 300, 4, 2, None),
  'wide band, alibi': (Causal() & Band(100), 257, 4, 2, Alibi()),
  'band of 1': (Causal() & Band(1), 130, 4, 4, None),
  'band both ways': (Band(9), 130, 4, 2, None),
  'band nearly the row': (Causal() & Band(190), 200, 2, 2, None),
  'band and prefix': ((Causal() | Prefix()) & Band(30), 200, 4, 2, None),
  'band or prefix': ((Causal() & Band(30)) | Prefix(), 200, 4, 2, None),
  'blocks': (Causal() & Block(50), 230, 2, 2, None),
  'columns': (Causal() & Column(7), 200, 2, 2, None),
  'all but the near': (Causal() & ~Band(20), 200, 2, 2, None),
}


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
  """Several chunks in rows that a test can hold, and several rows one after another."""
  monkeypatch.setattr(chunks, 'CHUNK', 64)
  monkeypatch.setattr(chunks, 'MOST_SCORES', 4 * 64 * 64)


def plain(mask, layout, bias, query, key, value):
  """All scores at once; a bias, be it of zeros, keeps to jax's own gradients."""
  shape = (len(query), query.shape[2], query.shape[1], key.shape[1])
  scores = jnp.zeros(shape) if bias is None else bias(layout, layout, *query.shape[2:])
  return softmax_attention(query, key, value, mask(layout, layout), scores)


@pytest.mark.parametrize('case', CHUNKED)
def test_chunks_are_the_whole(case):
  """Packed and padded rows; the mask leaves whole chunks out, the segments others."""
  mask, length, heads, kv_heads, bias = CHUNKED[case]
  mask, layout = mask & SameSegment(), random_layout(length, ROWS, length)
  arrays = heads_of(length, heads, kv_heads)
  seeing = np.asarray(mask(layout, layout).any(-1))
  got = gradients(lambda q, k, v: chunked(q, k, v, layout, layout, mask, bias), arrays, seeing)
  want = gradients(functools.partial(plain, mask, layout, bias), arrays, seeing)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-5), got, want)
  assert all(float(jnp.abs(x).max()) > 0.1 for x in jax.tree.leaves(got))


def test_chunks_read_a_cache():
  """Queries are fewer than keys, and the cache has slots that nobody wrote."""
  layout, (query, key, value) = random_layout(3, ROWS, 300, prefix=False), heads_of(300, 4, 2)
  mask, last = Causal() & SameSegment(), jax.tree.map(lambda x: x[:, 130:], layout)
  found, sums = jax.jit(lambda q: chunked(q, key, value, last, layout, mask))(query[:, 130:])
  want, want_sums = (x[:, 130:] for x in plain(mask, layout, None, query, key, value))
  seeing = layout.segment[:, 130:] > 0
  np.testing.assert_allclose(found[seeing], want[seeing], atol=1e-5)
  np.testing.assert_allclose(sums[seeing], want_sums[seeing], atol=1e-5)


def test_chunks_in_bfloat16_have_a_softmax_in_float32():
  arrays = heads_of(200, 4, 2, dtype=jnp.bfloat16)
  layout, mask = random_layout(4, ROWS, 200, prefix=False), Causal() & SameSegment()
  out, sums = jax.jit(lambda *heads: chunked(*heads, layout, layout, mask))(*arrays)
  want, _ = plain(mask, layout, None, *(x.astype(jnp.float32) for x in arrays))
  assert out.dtype == jnp.bfloat16 and sums.dtype == jnp.float32
  np.testing.assert_allclose(out.astype(jnp.float32)[layout.segment > 0], want[layout.segment > 0], atol=0.03)


def test_a_row_that_sees_nothing_has_no_gradient():
  layout = random_layout(5, ROWS, 150, prefix=False)
  layout = layout.replace(segment=layout.segment.at[0].set(0))
  mask = Causal() & SameSegment()

  def loss(*heads):
    out, sums = chunked(*heads, layout, layout, mask)
    return jnp.sum(out) + 0 * jnp.sum(sums)

  found = jax.jit(jax.grad(loss, (0, 1, 2)))(*heads_of(150, 2, 2))
  assert all(np.isfinite(x).all() and not np.any(x[0]) and np.any(x[1]) for x in found)


@pytest.mark.parametrize('reach', [(0, 0), (29, 0), (63, 0), (64, 0), (8, 8), (99, 0), (float('inf'), 0)])
@pytest.mark.parametrize('length', [65, 128, 300])
def test_chunks_hold_every_key_in_reach(length, reach):
  cut = Chunks.of(length, length, reach)
  for query in range(length):
    piece = query // cut.queries
    start = cut.first[piece] - cut.front
    least, most = max(0, query - reach[0]), min(length - 1, query + reach[1])
    assert start <= least and most < start + cut.steps[piece] * cut.keys
  if reach[0] < length / 2:  # and not many more
    assert max(cut.steps) * cut.keys < cut.queries + sum(reach) + 64


@pytest.mark.parametrize('pattern', [Dense(), Dense(Causal() | Prefix()), Banded(30), Strided(16), Fixed(32, 2)])
def test_a_pattern_is_the_same_in_chunks(pattern):
  """Of patterns in parts, each part is in chunks by itself."""
  layout, arrays = random_layout(7, ROWS, 200), heads_of(200, 4, 2)
  real = layout.segment > 0
  run = lambda kernel: gradients(lambda q, k, v: pattern.attend(q, k, v, layout, layout, kernel=kernel), arrays, real)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-5), run('chunked'), run('plain'))


def test_memory_of_chunks_grows_with_the_row():
  def temporary(length, kernel):
    layout, heads = random_layout(8, 1, length, prefix=False), heads_of(length, 2, 2, rows=1)
    attend = lambda *heads: jnp.sum(Dense()(*heads, layout, layout, kernel=kernel))
    compiled = jax.jit(jax.grad(attend, (0, 1, 2))).lower(*heads).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary(2048, 'chunked') < 2.2 * temporary(1024, 'chunked')
  assert temporary(2048, 'plain') > 3.5 * temporary(1024, 'plain')


LEFT_OUT = {  # mask, whether the second half of a row is another document, the half whose outputs are looked at
  'a later half': (Causal(), False, slice(None, 128)),
  'another document behind': (SameSegment(), True, slice(None, 128)),
  'another document before': (SameSegment(), True, slice(128, None)),
  'beyond a band': (Causal() & Band(20), False, slice(192, None)),
}


@pytest.mark.parametrize('case', LEFT_OUT)
def test_chunks_that_nobody_sees_are_not_computed(case):
  """What is not a number there would spoil what is computed, were it weighed with 0; forward and backward."""
  mask, cut, looked_at = LEFT_OUT[case]
  layout = left_to_right(jnp.zeros((1, 256), jnp.int32))
  layout = layout.replace(segment=layout.segment + cut * (layout.order >= 128))
  query, key, value = heads_of(256, 2, 2, rows=1)
  others = (jnp.arange(256) >= 128) if looked_at.stop else (jnp.arange(256) < 128)
  spoilt = jnp.where(others[:, None, None], jnp.nan, value)

  def run(query):
    out, _ = chunked(query, key, spoilt, layout, layout, mask & SameSegment())
    return jnp.sum(out[:, looked_at]), out[:, looked_at]

  gradient, out = jax.jit(jax.grad(run, has_aux=True))(query)
  assert np.isfinite(out).all() and np.isfinite(gradient[:, looked_at]).all()
  whole = softmax_attention(query, key, spoilt, (mask & SameSegment())(layout, layout))[0]
  assert np.isnan(whole[:, looked_at]).any()
