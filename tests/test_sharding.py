"""The mesh and the rules."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from gpt_jax.sharding import AXES, Placement, _grid, make_mesh, spec_of
from gpt_jax.training.loop import init_state
from gpt_jax.types import UserError, left_to_right

MESH = {'data': 2, 'fsdp': 2, 'tensor': 2}


def test_mesh_infers_one_size():
  mesh = make_mesh({'data': -1, 'tensor': 2})
  assert dict(mesh.shape) == {'data': 4, 'fsdp': 1, 'tensor': 2, 'sequence': 1}
  assert set(mesh.axis_types) == {AxisType.Auto}
  assert make_mesh({}, jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    ({'data': 3}, 'mesh sizes data=3 do not multiply to the 8 devices at hand; set one of them to -1'),
    ({'data': -1, 'tensor': 3}, 'mesh sizes data=-1 x tensor=3 do not multiply to the 8 devices at hand'),
    ({'data': -1, 'fsdp': -1}, 'at most one -1'),
    ({'data': 0}, 'each must be positive'),
    ({'model': 2}, 'mesh.model is no axis; known: data, fsdp, tensor, sequence'),
  ],
)
def test_mesh_of_wrong_sizes(sizes, message):
  with pytest.raises(UserError, match=message):
    make_mesh(sizes)


@dataclasses.dataclass(frozen=True)
class Chip:
  """What is asked of a device when a mesh is made."""

  id: int
  slice_index: int
  platform: str = 'cpu'
  device_kind: str = 'chip'
  process_index: int = 0


@pytest.mark.parametrize(
  ('shape', 'across'),
  [((4, 2, 1, 1), 0), ((1, 8, 1, 1), 1), ((1, 4, 2, 1), 1), ((2, 2, 2, 1), 0)],
)
def test_slices_part_the_axis_that_exchanges_least(shape, across):
  """Along every other axis, and within a half of this one, all neighbours are of one slice."""
  chips = [Chip(number, number % 2) for number in range(8)]
  grid = _grid(shape, chips)
  assert grid.shape == shape and set(grid.flat) == set(chips)
  for half in np.split(grid, 2, axis=across):
    assert len({chip.slice_index for chip in half.flat}) == 1


@pytest.mark.parametrize(
  ('path', 'shape', 'spec'),
  [
    ('embed/embedding', (64, 32), P('tensor', 'fsdp')),
    ('embed/embedding', (65, 32), P(None, 'fsdp')),  # 65 letters stay whole
    ('blocks/block_0/attention/query/kernel', (3, 32, 4, 8), P(None, 'fsdp', 'tensor', None)),
    ('layers_1/block_0/attention/query/kernel', (32, 4, 8), P('fsdp', 'tensor', None)),
    ('blocks/block_0/attention/value/kernel', (3, 32, 1, 8), P(None, 'fsdp', None, None)),  # multi-query
    ('blocks/block_0/attention/key/bias', (3, 4, 8), P(None, 'tensor', None)),
    ('blocks/block_0/attention/out/kernel', (3, 4, 8, 32), P(None, 'tensor', None, 'fsdp')),
    ('blocks/block_0/mlp/gate/kernel', (3, 32, 64), P(None, 'fsdp', 'tensor')),
    ('blocks/block_0/mlp/down/kernel', (3, 64, 32), P(None, 'tensor', 'fsdp')),
    ('blocks/block_0/mlp/down/bias', (3, 32), P(None, None)),
    ('blocks/block_0/norm_attention/scale', (3, 32), P(None, None)),
    ('norm_final/bias', (32,), P(None)),
    ('positions/table', (16, 32), P(None, 'fsdp')),
    ('head/kernel', (32, 64), P('fsdp', 'tensor')),
    ('params/residual_kernel', (4, 32, 32), P(None, 'fsdp', 'tensor')),
    ('params/residual_bias', (4, 32), P(None, 'tensor')),
    ('params/unembed_table', (4, 65, 32), P(None, None, 'fsdp')),
  ],
)
def test_rules(path, shape, spec):
  assert spec_of(path, shape, make_mesh(MESH)) == spec


def test_no_catch_all():
  with pytest.raises(UserError, match=r'no sharding rule for parameter mystery/kernel; add its path to sharding.RULES'):
    Placement(make_mesh(MESH)).params({'mystery': {'kernel': jnp.ones((4, 4))}})


@pytest.mark.parametrize('optimizer', [optax.adamw(1e-3), optax.adafactor(1e-3), optax.contrib.muon(1e-3)])
def test_moments_live_beside_their_parameters(optimizer):
  params = {'mlp': {'up': {'kernel': jnp.ones((2, 256, 128))}}, 'norm_final': {'scale': jnp.ones(8)}}
  params['head'] = {'kernel': jnp.ones((256, 256))}
  placement = Placement(make_mesh(MESH))
  state = jax.eval_shape(lambda: init_state(params, optimizer))
  specs = jax.tree.leaves(placement.state(state))
  for (path, leaf), sharding in zip(jax.tree_util.tree_leaves_with_path(state), specs, strict=True):
    whole = {(2, 256, 128): P(None, 'fsdp', 'tensor'), (256, 256): P('fsdp', 'tensor'), (8,): P(None)}
    assert sharding.spec == whole.get(leaf.shape, P()), path


def test_batch_is_spread_over_data_and_fsdp():
  placement = Placement(make_mesh(MESH))
  tokens = np.arange(24).reshape(8, 3)
  layout = jax.tree.map(np.asarray, left_to_right(tokens))
  placed = placement.batch({'tokens': tokens, 'layout': layout})
  np.testing.assert_array_equal(placed['tokens'], tokens)
  assert {shard.data.shape for shard in placed['tokens'].addressable_shards} == {(2, 3)}
  assert placed['layout'].order.sharding.spec == P(('data', 'fsdp'))
  hidden = jnp.ones((8, 3))
  assert placement.batch({'tokens': tokens, 'hidden': hidden})['hidden'] is hidden, 'what a model made stays there'
  with pytest.raises(UserError, match='a batch of 6 rows does not divide over data x fsdp = 4 devices'):
    placement.batch({'tokens': tokens[:6]})


def test_sharded_equals_unsharded():
  """Two layers of attention-shaped and mlp-shaped products, a table and a head, in every sharding; and no warning."""
  generator = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(generator.normal(size=shape) / 4, jnp.float32)
  params = {
    'embed': {'embedding': draw(64, 16)},
    'blocks': {
      'attention': {'query': {'kernel': draw(2, 16, 4, 4)}, 'out': {'kernel': draw(2, 4, 4, 16)}},
      'mlp': {'up': {'kernel': draw(2, 16, 32)}, 'down': {'kernel': draw(2, 32, 16)}},
    },
    'head': {'kernel': draw(16, 64)},
  }
  tokens = generator.integers(0, 64, (8, 6))

  def loss(params, tokens):
    def layer(hidden, block):
      heads = jnp.einsum('btd,dnh->btnh', hidden, block['attention']['query']['kernel'])
      hidden += jnp.einsum('btnh,nhd->btd', jnp.tanh(heads), block['attention']['out']['kernel'])
      return hidden + jnp.tanh(hidden @ block['mlp']['up']['kernel']) @ block['mlp']['down']['kernel'], None

    hidden, _ = jax.lax.scan(layer, params['embed']['embedding'][tokens], params['blocks'])
    return jax.nn.log_softmax(hidden @ params['head']['kernel'])[..., 0].mean()

  expected = jax.jit(jax.value_and_grad(loss))(params, tokens)
  for sizes in (MESH, {'data': 8}, {'fsdp': 8}, {'tensor': 4, 'data': 2}):
    placement = Placement(make_mesh(sizes))
    placed = jax.device_put(params, placement.params(params))
    found = jax.jit(jax.value_and_grad(loss))(placed, placement.batch({'tokens': tokens})['tokens'])
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, atol=1e-6), found, expected)


@pytest.mark.parametrize(
  ('shape', 'owners', 'share'),
  [
    ((4, 1, 2), [0, 0, 0, 0, 1, 1, 1, 1], (0, 2)),
    ((4, 1, 2), [1, 1, 0, 0, 2, 2, 3, 3], (1, 4)),
    ((2, 2, 2), [2, 3, 2, 3, 1, 0, 1, 0], (1, 2)),  # two processes hold the same rows
    ((1, 1, 8), [0, 0, 0, 0, 1, 1, 1, 1], (0, 1)),  # all hold all rows
    ((8, 1, 1), [1, 0, 1, 0, 1, 0, 1, 0], (1, 2)),  # rows that are no neighbours
  ],
)
def test_the_share_of_a_process_goes_by_the_rows_of_its_devices(shape, owners, share):
  """This is process 0, of those that own the devices of a mesh of data, fsdp and tensor."""
  assert Placement(owned(shape, owners)).share == dict(zip(('host', 'hosts'), share, strict=True))


def test_processes_that_hold_a_part_of_the_same_rows_are_refused():
  with pytest.raises(UserError, match='can not share the rows; make data x fsdp a multiple of it'):
    _ = Placement(owned((3, 1, 2), [0, 0, 0, 1, 1, 1])).share


def owned(shape: tuple[int, ...], owners: list[int]) -> jax.sharding.Mesh:
  """A mesh of devices of which each is of some process."""
  mesh = mock.create_autospec(jax.sharding.Mesh, instance=True)
  mesh.devices = np.array([mock.Mock(process_index=owner) for owner in owners]).reshape(*shape, 1)
  mesh.shape = dict(zip(AXES, (*shape, 1), strict=True))
  return mesh
