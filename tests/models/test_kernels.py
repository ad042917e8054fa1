"""Every way to compute attention against the plainest, values and gradients; and which of them is taken."""

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models import kernels
from gpt_jax.models.attention import Banded, Dense, Fixed, Strided
from gpt_jax.models.kernels import Chunks, Job
from gpt_jax.models.masks import Band, Block, Causal, Column, Prefix, SameSegment
from gpt_jax.models.positions import Alibi, FalconAlibi
from gpt_jax.types import left_to_right
from tests.models.layouts import random_layout

ROWS, WIDTH = 2, 8

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
  monkeypatch.setattr(kernels, 'CHUNK', 64)
  monkeypatch.setattr(kernels, 'MOST_SCORES', 4 * 64 * 64)


def heads_of(length, heads, kv_heads, rows=ROWS, width=WIDTH, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(length + heads + kv_heads), 3)
  shapes = [(rows, length, n, width) for n in (heads, kv_heads, kv_heads)]
  return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def gradients(attend, heads, real):
  """Of outputs and of sums, where a query sees something; with both."""

  def loss(*heads):
    out, sums = (jnp.where(real[(...,) + (None,) * (x.ndim - 2)], x, 0) for x in attend(*heads))
    return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.sin(sums)), (out, sums)

  return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*heads)


def plain(mask, layout, bias, query, key, value):
  """All scores at once; a bias, be it of zeros, keeps to jax's own gradients."""
  shape = (len(query), query.shape[2], query.shape[1], key.shape[1])
  scores = jnp.zeros(shape) if bias is None else bias(layout, layout, *query.shape[2:])
  return kernels.softmax_attention(query, key, value, mask(layout, layout), scores)


@pytest.mark.parametrize('case', CHUNKED)
def test_chunks_are_the_whole(case):
  """Packed and padded rows; the mask leaves whole chunks out, the segments others."""
  mask, length, heads, kv_heads, bias = CHUNKED[case]
  mask, layout = mask & SameSegment(), random_layout(length, ROWS, length)
  arrays = heads_of(length, heads, kv_heads)
  seeing = np.asarray(mask(layout, layout).any(-1))
  got = gradients(lambda q, k, v: kernels.chunked(q, k, v, layout, layout, mask, bias), arrays, seeing)
  want = gradients(functools.partial(plain, mask, layout, bias), arrays, seeing)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-5), got, want)
  assert all(float(jnp.abs(x).max()) > 0.1 for x in jax.tree.leaves(got))


def test_chunks_read_a_cache():
  """Queries are fewer than keys, and the cache has slots that nobody wrote."""
  layout, (query, key, value) = random_layout(3, ROWS, 300, prefix=False), heads_of(300, 4, 2)
  mask, last = Causal() & SameSegment(), jax.tree.map(lambda x: x[:, 130:], layout)
  found, sums = jax.jit(lambda q: kernels.chunked(q, key, value, last, layout, mask))(query[:, 130:])
  want, want_sums = (x[:, 130:] for x in plain(mask, layout, None, query, key, value))
  seeing = layout.segment[:, 130:] > 0
  np.testing.assert_allclose(found[seeing], want[seeing], atol=1e-5)
  np.testing.assert_allclose(sums[seeing], want_sums[seeing], atol=1e-5)


def test_chunks_in_bfloat16_have_a_softmax_in_float32():
  arrays = heads_of(200, 4, 2, dtype=jnp.bfloat16)
  layout, mask = random_layout(4, ROWS, 200, prefix=False), Causal() & SameSegment()
  out, sums = jax.jit(lambda *heads: kernels.chunked(*heads, layout, layout, mask))(*arrays)
  want, _ = plain(mask, layout, None, *(x.astype(jnp.float32) for x in arrays))
  assert out.dtype == jnp.bfloat16 and sums.dtype == jnp.float32
  np.testing.assert_allclose(out.astype(jnp.float32)[layout.segment > 0], want[layout.segment > 0], atol=0.03)


def test_a_row_that_sees_nothing_has_no_gradient():
  layout = random_layout(5, ROWS, 150, prefix=False)
  layout = layout.replace(segment=layout.segment.at[0].set(0))
  mask = Causal() & SameSegment()

  def loss(*heads):
    out, sums = kernels.chunked(*heads, layout, layout, mask)
    return jnp.sum(out) + 0 * jnp.sum(sums)

  found = jax.jit(jax.grad(loss, (0, 1, 2)))(*heads_of(150, 2, 2))
  assert all(np.isfinite(x).all() and not np.any(x[0]) and np.any(x[1]) for x in found)


@pytest.mark.parametrize('reach', [(0, 0), (29, 0), (63, 0), (64, 0), (8, 8), (99, 0), (float('inf'), 0)])
@pytest.mark.parametrize('length', [65, 128, 300])
def test_chunks_hold_every_key_in_reach(length, reach):
  chunks = Chunks.of(length, length, reach)
  for query in range(length):
    piece = query // chunks.queries
    start = chunks.first[piece] - chunks.front
    least, most = max(0, query - reach[0]), min(length - 1, query + reach[1])
    assert start <= least and most < start + chunks.steps[piece] * chunks.keys
  assert chunks.front + length <= chunks.slots or chunks.slots >= chunks.first[-1] + chunks.steps[-1] * chunks.keys


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


FUSED = {  # pattern, query heads, key heads
  'dense': (Dense(), 4, 4),
  'grouped': (Dense(), 4, 2),
  'multi-query': (Dense(), 4, 1),
  'banded': (Banded(100), 4, 2),
  'band both ways': (Banded(30, Band(100)), 2, 2),
}


@pytest.mark.parametrize('case', FUSED)
def test_splash_attention_is_the_pattern(case):
  """Interpreted here; its block-sparse table is the predicate's."""
  pattern, heads, kv_heads = FUSED[case]
  layout, arrays = random_layout(9, ROWS, 256, prefix=False), heads_of(256, heads, kv_heads, width=64)
  real = layout.segment > 0

  def run(kernel):
    without_sums = lambda *heads: (pattern(*heads, layout, layout, kernel=kernel), jnp.zeros((ROWS, 256)))
    return gradients(without_sums, arrays, real)

  assert pattern.job(*arrays[:2]).choose('splash') == ('splash', 'as asked')
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-5), run('splash'), run('plain'))


def test_splash_attention_on_a_mesh_is_the_same_without():
  layout, arrays = random_layout(10, 4, 128, prefix=False), heads_of(128, 4, 2, rows=4, width=64)
  run = jax.jit(lambda *heads: Dense()(*heads, layout, layout, kernel='splash'))
  want = run(*arrays)
  mesh = jax.make_mesh((2, 2, 2), ('data', 'fsdp', 'tensor'), axis_types=(jax.sharding.AxisType.Auto,) * 3)
  with jax.set_mesh(mesh):
    np.testing.assert_allclose(jax.jit(run)(*arrays), want, atol=1e-6)
    assert 'shard_map' in str(jax.make_jaxpr(run)(*arrays))


@pytest.mark.parametrize('case', FUSED)
def test_what_cudnn_is_called_with_is_the_pattern(case):
  """The same call, computed by XLA."""
  pattern, heads, kv_heads = FUSED[case]
  layout, arrays = random_layout(11, ROWS, 100, prefix=False), heads_of(100, heads, kv_heads)
  got = jax.jit(lambda *heads: kernels.cudnn(*heads, layout, pattern.seen, implementation='xla'))(*arrays)
  want = jax.jit(lambda *heads: pattern(*heads, layout, layout, kernel='plain'))(*arrays)
  real = layout.segment > 0
  np.testing.assert_allclose(got[real], want[real], atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != 'gpu', reason='needs a GPU')
@pytest.mark.parametrize('case', FUSED)
def test_cudnn_is_the_pattern(case):
  pattern, heads, kv_heads = FUSED[case]
  layout = random_layout(12, ROWS, 512, prefix=False)
  arrays = heads_of(512, heads, kv_heads, width=64, dtype=jnp.bfloat16)
  real = layout.segment > 0
  run = lambda kernel: jax.jit(lambda *heads: pattern(*heads, layout, layout, kernel=kernel))(*arrays)[real]
  np.testing.assert_allclose(run('cudnn').astype(jnp.float32), run('plain').astype(jnp.float32), atol=0.03)


JOB = Job(rows=2, queries=1024, keys=1024, heads=4, width=64, dtype='bfloat16', mask=Causal())
CHOICES = {  # what is asked, kernel, device, what is taken
  'long rows on a CPU': ({}, 'auto', 'cpu', 'chunked'),
  'short rows': ({'queries': 256, 'keys': 256}, 'auto', 'cpu', 'plain'),
  'many short rows': ({'rows': 4096, 'queries': 256, 'keys': 256}, 'auto', 'cpu', 'chunked'),
  'dropout': ({'dropped': True}, 'auto', 'cpu', 'plain'),
  'one token reads a cache': ({'queries': 1}, 'auto', 'cpu', 'plain'),
  'a GPU': ({}, 'auto', 'gpu', 'cudnn'),
  'float32 on a GPU': ({'dtype': 'float32'}, 'auto', 'gpu', 'plain'),
  'odd heads on a GPU': ({'width': 12}, 'auto', 'gpu', 'plain'),
  'many float32 on a GPU': ({'dtype': 'float32', 'rows': 128}, 'auto', 'gpu', 'chunked'),
  'a bias on a GPU': ({'biased': True}, 'auto', 'gpu', 'plain'),
  'a TPU': ({}, 'auto', 'tpu', 'splash'),
  'a prefix on a TPU': ({'mask': Causal() | Prefix()}, 'auto', 'tpu', 'plain'),
  'a length that is no multiple': ({'queries': 1000, 'keys': 1000}, 'auto', 'tpu', 'plain'),
  'parts on a TPU': ({'mask': None}, 'auto', 'tpu', 'plain'),
  'as asked': ({}, 'plain', 'tpu', 'plain'),
  'asked in vain': ({'dropped': True}, 'splash', 'tpu', 'plain'),
  'asked in vain, long rows': ({'mask': Causal() | Prefix()}, 'splash', 'cpu', 'chunked'),
}


@pytest.mark.parametrize('case', CHOICES)
def test_a_kernel_is_chosen_by_device_and_mask(case):
  changed, kernel, device, want = CHOICES[case]
  name, why = dataclasses.replace(JOB, **changed).choose(kernel, device)
  assert name == want and why
  if 'vain' in case:
    assert 'not splash, as' in why


def test_what_order_alone_says_is_what_the_mask_says():
  mask = (Causal() & Band(5)) | Column(3)
  layout = left_to_right(jnp.zeros((1, 12), jnp.int32))
  queries, keys = np.arange(3, 12), np.arange(12)
  np.testing.assert_array_equal(kernels.seen_by_order(mask, queries, keys), mask(layout, layout)[0, 3:])
  assert mask.of_order and not (mask | Prefix()).of_order and not (~SameSegment()).of_order


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu (pip install -e .[tpu])')
@pytest.mark.parametrize('pattern', [Dense(), Banded(256)])
def test_splash_attention_compiles_for_a_tpu(pattern):
  """Ahead of time, forward and backward: kernels for scores, and no array of them."""
  from jax.experimental import topologies

  device = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices[0]
  heads = jax.ShapeDtypeStruct((1, 2048, 4, 64), jnp.bfloat16, sharding=jax.sharding.SingleDeviceSharding(device))
  layout = random_layout(14, 1, 2048, prefix=False)
  attend = lambda *heads: jnp.sum(pattern(*heads, layout, layout, kernel='splash').astype(jnp.float32))
  compiled = jax.jit(jax.grad(attend, (0, 1, 2))).lower(heads, heads, heads).compile()
  assert compiled.as_text().count('tpu_custom_call') >= 3
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * 2048 * 2048
