"""Train states on disk."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from gpt_jax.sharding import Placement, make_mesh
from gpt_jax.training.checkpoints import latest_step, open_checkpoints, restore, restore_params, save
from gpt_jax.training.loop import init_state
from gpt_jax.training.optimizers import averaged, make_optimizer
from gpt_jax.types import UserError, shapes_at


def state_of(width=16, **optimizer):
  params = {
    'embed': {'embedding': jnp.arange(24.0 * width).reshape(24, width)},
    'head': {'kernel': jnp.ones((width, 24))},
  }
  return init_state(params, make_optimizer(optimizer, 10))


def like(tree, placement=None):
  """Shapes, to be placed as they are or by `placement`."""
  shardings = placement.state(tree) if placement else jax.tree.map(lambda leaf: leaf.sharding, tree)
  return shapes_at(tree, shardings)


def written(workdir, state, step=3):
  checkpoints = open_checkpoints(workdir)
  save(checkpoints, step, state)
  checkpoints.wait_until_finished()
  checkpoints.close()


def assert_same(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_state_donated_right_after_save_is_saved_whole(tmp_path):
  """The copy is made before save returns: 64 MB, overwritten at once, time and again."""
  overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf - 1, tree), donate_argnums=0)
  state = init_state({'kernel': jnp.ones((4096, 1024))}, make_optimizer({'ema': 0.9}, 10))
  shapes = like(state)
  checkpoints = open_checkpoints(tmp_path)
  for step in range(2):
    expected = 1.0 - 5 * step
    save(checkpoints, step, state)
    for _ in range(5):
      state = overwrite(state)
    jax.block_until_ready(state)
    checkpoints.wait_until_finished()
    restored = restore(tmp_path, shapes, step)
    np.testing.assert_array_equal(restored.params['kernel'], expected)
    np.testing.assert_array_equal(averaged(restored.opt_state)['kernel'], expected)
  checkpoints.close()


@pytest.mark.parametrize('name', ['adamw', 'adafactor', 'lion', 'muon', 'sgd'])
def test_round_trip_to_another_mesh_and_back(tmp_path, name):
  one = Placement(make_mesh({}, jax.devices()[:1]))
  eight = Placement(make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2}))
  state = state_of(name=name, ema=0.9)
  written(tmp_path / 'one', state)
  spread = restore(tmp_path / 'one', like(state, eight), 3)
  assert_same(spread, state)
  assert spread.params['head']['kernel'].sharding.spec == PartitionSpec('fsdp', 'tensor')
  assert averaged(spread.opt_state)['head']['kernel'].sharding.spec == PartitionSpec('fsdp', 'tensor')
  written(tmp_path / 'eight', spread)
  back = restore(tmp_path / 'eight', like(state, one), 3)
  assert_same(back, state)
  assert back.params['head']['kernel'].sharding.num_devices == 1


@pytest.mark.parametrize('optimizer', [{'name': 'muon'}, {'clip_norm': 0.0, 'weight_decay': 0.0}])
def test_parameters_alone(tmp_path, optimizer):
  """Whatever the optimiser was; and its average, where it kept one."""
  state = state_of(**optimizer)
  written(tmp_path / 'plain', state)
  assert_same(restore_params(tmp_path / 'plain', like(state.params)), state.params)
  state = state_of(**optimizer, ema=0.9)
  state = state.replace(params=jax.tree.map(lambda leaf: leaf + 1, state.params))
  written(tmp_path / 'averaged', state)
  assert_same(restore_params(tmp_path / 'averaged', like(state.params)), averaged(state.opt_state))


def test_misfits_are_named(tmp_path):
  state = state_of()
  written(tmp_path, state)
  folder = f'{tmp_path}/checkpoints/3'
  message = f'{folder} has params.embed.embedding of shape (24, 16), not (24, 32): use the config it was made with'
  with pytest.raises(UserError) as error:
    restore(tmp_path, like(state_of(width=32)), 3)
  assert str(error.value) == message
  with pytest.raises(UserError, match=r'has params.embed.embedding of shape \(24, 16\), not \(24, 32\)'):
    restore_params(tmp_path, like(state_of(width=32).params))
  with pytest.raises(UserError, match=r'has no params.tail.kernel: it was made by another model or optimizer'):
    restore_params(tmp_path, {'tail': like(state.params)['head']})
  with pytest.raises(UserError, match=r'has opt_state\.\S+, which this run has not'):
    restore(tmp_path, like(state_of(name='sgd', momentum=0.9)), 3)
  with pytest.raises(UserError, match='does not exist: pick a step that was saved'):
    restore_params(tmp_path, like(state.params), step=4)
  with pytest.raises(UserError, match='has no checkpoint: train there first'):
    restore_params(tmp_path / 'nothing', like(state.params))


@pytest.mark.parametrize('damage', ['metadata', 'half', 'none'])
def test_damaged_checkpoint_is_one_line(tmp_path, damage):
  state = state_of()
  written(tmp_path, state)
  folder = tmp_path / 'checkpoints' / '3' / 'default'
  if damage == 'metadata':
    (folder / '_METADATA').write_text('{')
  files = [path for path in folder.rglob('*') if path.is_file() and path.parent.name == 'd']
  assert files
  for path in files:
    content = path.read_bytes()
    if damage == 'half':
      path.write_bytes(content[: len(content) // 2])
    if damage == 'none':
      path.unlink()
  with pytest.raises(UserError, match=r'checkpoints/3 is not a readable checkpoint \(.*\); remove it') as error:
    restore(tmp_path, like(state), 3)
  assert '\n' not in str(error.value)


def test_half_written_save_is_no_checkpoint(tmp_path):
  state = state_of()
  written(tmp_path, state)
  whole = tmp_path / 'checkpoints' / '3'
  half = tmp_path / 'checkpoints' / '5.orbax-checkpoint-tmp'
  half.mkdir()
  (half / 'default').mkdir()
  (half / 'default' / 'd').write_bytes(b'half')
  assert latest_step(tmp_path) == 3
  assert_same(restore(tmp_path, like(state), 3), state)
  written(tmp_path, state, step=5)
  assert latest_step(tmp_path) == 5
  assert whole.exists()
