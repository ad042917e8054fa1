"""Kernels against the plainest attention, values and gradients; and which of them is taken."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models import kernels
from gpt_jax.models.attention import Banded, Dense
from gpt_jax.models.kernels import Job
from gpt_jax.models.masks import Band, Causal, Column, Prefix, SameSegment
from gpt_jax.types import left_to_right
from tests.models.heads import ROWS, gradients, heads_of
from tests.models.layouts import random_layout

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
