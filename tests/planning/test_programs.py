"""Collectives and products of compiled programs, counted as often as they run, against counts by hand."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import pytest

from gpt_jax.planning.programs import Program, group_of, size_of
from gpt_jax.sharding import make_mesh

LAYERS, ROWS, WIDTH, WIDER = 5, 16, 64, 96
KERNEL = WIDTH * WIDER * 4


def read(function, *arrays, mesh, specs):
  """The program of a function that each device runs on its part of the arrays."""
  mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
  return Program(jax.jit(mapped).lower(*arrays).compile().as_text())


COLLECTIVES = {
  # What one device holds is [16, 64 / 8, 96] or [16, 64, 96] of the whole; bytes by hand, as docstrings say.
  'all-gather': (lambda w: jax.lax.all_gather(w, 'fsdp', tiled=True), KERNEL, 7 / 8),
  'reduce-scatter': (lambda w: jax.lax.psum_scatter(jnp.tile(w, (8, 1)), 'fsdp', tiled=True), KERNEL, 7 / 8),
  'all-reduce': (lambda w: jax.lax.psum(w, 'fsdp'), KERNEL // 8, 2 * 7 / 8),
  'all-to-all': (lambda w: jax.lax.all_to_all(w, 'fsdp', 0, 0, tiled=True), KERNEL // 8, 7 / 8),
  'collective-permute': (lambda w: jax.lax.ppermute(w, 'fsdp', [(i, (i + 1) % 8) for i in range(8)]), KERNEL // 8, 1),
}


@pytest.mark.parametrize('kind', COLLECTIVES)
@pytest.mark.parametrize('scanned', [False, True])
def test_collectives_are_counted_as_often_as_they_run(kind, scanned):
  exchange, size, sent = COLLECTIVES[kind]

  def once(total, kernel):
    return total + exchange(kernel).sum(), None

  def function(kernels):
    if scanned:
      return jax.lax.scan(once, 0.0, kernels)[0]
    return once(0.0, kernels[0])[0]

  kernels = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDER), jnp.float32)
  program = read(function, kernels, mesh=make_mesh({'fsdp': 8}), specs=(P(None, 'fsdp'),))
  (one,) = program.collectives()
  assert (one.kind, one.bytes, one.count) == (kind, size, LAYERS if scanned else 1)
  assert one.moved == pytest.approx(one.count * size * sent)


def test_groups_are_those_of_the_axis():
  mesh = make_mesh({'fsdp': 4, 'tensor': 2})
  over = lambda axis: read(
    lambda x: jax.lax.psum(x, axis), jax.ShapeDtypeStruct((8, 8), jnp.float32), mesh=mesh, specs=(P('fsdp', 'tensor'),)
  )
  assert [one.group for one in over('fsdp').collectives()] == [(0, 2, 4, 6)]
  assert [one.group for one in over('tensor').collectives()] == [(0, 1)]


def test_sharded_layers_gather_their_kernels_and_reduce_their_gradients():
  """Of kernels spread over 8 devices, as XLA shards a scan by itself: each is gathered forward and backward, its
  gradient is reduced, and a device has three products of its rows."""
  mesh, rows = make_mesh({'fsdp': 8}), NamedSharding(make_mesh({'fsdp': 8}), P('fsdp'))

  def loss(kernels, x):
    layer = lambda x, w: (jax.lax.with_sharding_constraint(jnp.tanh(x @ w), rows), None)
    return jax.lax.scan(layer, x, kernels)[0].sum()

  shapes = [(LAYERS, WIDTH, WIDTH), (ROWS, WIDTH)]
  spread = NamedSharding(mesh, P(None, 'fsdp')), rows
  gradient = jax.jit(jax.grad(loss), in_shardings=spread, out_shardings=spread[0])
  program = Program(gradient.lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile().as_text())
  found = {
    kind: sum(one.count * one.bytes for one in program.collectives() if one.kind == kind) for kind in COLLECTIVES
  }
  size = LAYERS * WIDTH * WIDTH * 4
  assert (found['all-gather'], found['all-reduce'] + found['reduce-scatter']) == (2 * size, size)
  assert program.product_flops() == LAYERS * 3 * 2 * ROWS / 8 * WIDTH * WIDTH


def test_ways_to_write_groups():
  """The same groups in each of HLO's ways; ids in a mesh count as its axes do."""
  assert group_of('replica_groups={{0,4},{1,5}}, x') == (0, 4)
  assert group_of('replica_groups=[4,2]<=[8], x') == (0, 1)
  assert group_of('replica_groups=[2,4]<=[4,2]T(1,0), x') == (0, 2, 4, 6)
  assert group_of("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, x") == (0, 2, 4, 6)
  assert group_of("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','b','c'}, x") == tuple(range(8))
  assert group_of("replica_groups=mesh['a'=8] {'a':(2)2}, x") == (0, 2)
  assert group_of("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}, x") == (0, 1, 2, 3)
  with pytest.raises(ValueError, match='not known'):
    group_of('replica_groups=new(8)')
  assert group_of('source_target_pairs={{3,4},{4,5}}') == (3, 4)


def test_sizes():
  assert size_of('bf16[2,3]{1,0:T(8,128)(2,1)}') == 12
  assert size_of('(f32[4]{0}, /*index=5*/pred[3]{0}, s32[])') == 16 + 3 + 4
  assert size_of('f8e4m3fn[10]') == 10 and size_of('s4[3]') == 2


# A TPU's text, in short: a product as a convolution, one over a batch of heads, and a reduce-scatter in its disguise.
TPU = """HloModule jit_step

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[]{:T(128)}, f32[8]{0:T(256)}) parameter(0)
  %a = bf16[16,32]{1,0:T(8,128)(2,1)} constant({...})
  %b = bf16[32,24]{1,0:T(8,128)(2,1)} constant({...})
  %c = f32[16,24]{1,0:T(8,128)} convolution(%a, %b), dim_labels=bf_io->bf
  %q = bf16[6,16,32]{2,1,0:T(8,128)(2,1)} constant({...})
  %k = bf16[6,24,32]{2,1,0:T(8,128)(2,1)} constant({...})
  %s = f32[6,16,24]{2,1,0} convolution(%q, %k), window={size=6 stride=5 lhs_dilate=6}, dim_labels=0bf_0oi->0bf
  %r = f32[96,8]{1,0:T(8,128)} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
  %number = s32[]{:T(128)} get-tuple-element(%p), index=0
  %held = f32[8]{0:T(256)} get-tuple-element(%p), index=1
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%number, %one)
  %f = f32[8,8]{1,0:T(8,128)} custom-call(%q, %k), custom_call_target="tpu_custom_call", backend_config={}
  ROOT %t = (s32[]{:T(128)}, f32[8]{0:T(256)}) tuple(%next, %held)
}

%condition (p.1: (s32[], f32[8])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, f32[8]{0:T(256)}) parameter(0)
  %limit = s32[]{:T(128)} constant(80)
  %i = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%all-reduce-scatter.1 (input: f32[384,8]) -> f32[96,8] {
  %input = f32[384,8]{1,0:T(8,128)} parameter(0)
  %all-reduce.5 = f32[384,8]{1,0:T(8,128)} all-reduce(%input), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %part = f32[96,8]{1,0:T(8,128)} dynamic-slice(%all-reduce.5), dynamic_slice_sizes={96,8}
}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %z = f32[]{:T(128)} add(%x, %y)
}

ENTRY %main (w: f32[8]) -> f32[8] {
  %w = f32[8]{0:T(256)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, f32[8]{0:T(256)}) tuple(%zero, %w)
  %loop = (s32[]{:T(128)}, f32[8]{0:T(256)}) while(%start), condition=%condition, body=%body
  ROOT %out = f32[8]{0:T(256)} get-tuple-element(%loop), index=1
}
"""


def test_the_text_of_a_tpu():
  """80 layers, of products of 16 x 32 x 24, and of six heads of the same; the reduced array is of 384 x 8."""
  program = Program(TPU)
  (one,) = program.collectives()
  assert (one.kind, one.bytes, one.count) == ('reduce-scatter', 384 * 8 * 4, 80)
  assert program.product_flops() == 80 * (1 + 6) * 2 * 16 * 32 * 24
  assert program.kernels() == 80
  by_twos = TPU.replace('s32[]', 'u32[]').replace('constant(1)', 'constant(2)')
  assert Program(by_twos).kernels() == 40, 'so XLA goes through a product that it cut in windows'
  unsaid = Program(TPU.replace('direction=LT', 'direction=NE'))
  assert unsaid.open_loops == ['loop'] and not unsaid.collectives() and not unsaid.kernels()
  assert not program.open_loops
