"""Copies on a machine's own disk: a run that broke off between checkpoints goes on from the last of them, exactly."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_run import config, source, toy

from gpt_jax.training.checkpoints import latest_step
from gpt_jax.training.emergency import EmergencyCopies
from gpt_jax.training.loop import init_state
from gpt_jax.training.optimizers import make_optimizer
from gpt_jax.types import UserError, shapes_at


class Broken(Exception):
  pass


def broken_off(workdir, copies, step=13, every=1, **fields):
  """A run with a checkpoint every five steps and a copy every `every`, that ends after `step` as if killed."""

  def breaking(index, state):
    if index == step:
      raise Broken
    return source(index, state)

  with pytest.raises(Broken):
    toy(workdir, config(**fields), source=breaking, emergency=(str(copies), every))


def assert_same(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
  return toy(tmp_path_factory.mktemp('unbroken'))


def resumed_after(capsys):
  found = re.search(r'Resuming .* after step (\d+)', capsys.readouterr().out)
  return found and int(found[1])


@pytest.mark.parametrize('mesh', [{'data': -1}, {'data': 2, 'fsdp': 2, 'tensor': 2}])
def test_a_run_goes_on_from_the_last_copy(unbroken, tmp_path, capsys, mesh):
  broken_off(tmp_path / 'run', tmp_path / 'disk', mesh=mesh)
  state = toy(tmp_path / 'run', config(mesh=mesh), emergency=(str(tmp_path / 'disk'), 1))
  assert resumed_after(capsys) == 13
  if mesh == {'data': -1}:
    assert_same(state, unbroken)
  else:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), state, unbroken)
  assert not list((tmp_path / 'disk').rglob('*.npz')), 'a finished run needs none'


def test_two_copies_are_kept_and_a_torn_one_is_none(unbroken, tmp_path, capsys):
  broken_off(tmp_path / 'run', tmp_path / 'disk', every=3)
  before, last = sorted((tmp_path / 'disk').rglob('*.npz'), key=lambda path: int(path.stem))
  assert (before.stem, last.stem) == ('9', '12')
  last.write_bytes(last.read_bytes()[:-200])
  assert latest_step(tmp_path / 'run') == 10
  toy(tmp_path / 'run', emergency=(str(tmp_path / 'disk'), 3))
  assert resumed_after(capsys) == 10, 'the checkpoint is newer than what is whole'


def test_a_bit_that_has_changed_is_seen(tmp_path, capsys):
  broken_off(tmp_path / 'run', tmp_path / 'disk')
  for path in (tmp_path / 'disk').rglob('*.npz'):
    bytes_ = bytearray(path.read_bytes())
    bytes_[len(bytes_) // 2] ^= 1
    path.write_bytes(bytes_)
  toy(tmp_path / 'run', emergency=(str(tmp_path / 'disk'), 1))
  assert resumed_after(capsys) == 10


def test_on_another_mesh_checkpoints_serve(unbroken, tmp_path, capsys):
  broken_off(tmp_path / 'run', tmp_path / 'disk', mesh={'fsdp': 8})
  toy(tmp_path / 'run', config(mesh={'data': 8}), emergency=(str(tmp_path / 'disk'), 1))
  assert resumed_after(capsys) == 10


def test_copies_of_a_run_that_was_there_before_are_not_taken(tmp_path, capsys):
  broken_off(tmp_path / 'run', tmp_path / 'disk')
  (tmp_path / 'run').rename(tmp_path / 'gone')
  broken_off(tmp_path / 'run', tmp_path / 'disk', step=7, every=100)
  toy(tmp_path / 'run', emergency=(str(tmp_path / 'disk'), 100))
  assert resumed_after(capsys) == 5


def test_without_the_flag_nothing_is_copied(tmp_path):
  toy(tmp_path / 'run', config(num_steps=2))
  assert not (tmp_path / 'run' / 'run_id.json').exists()


def test_every_type_comes_back(tmp_path):
  state = init_state({'w': jnp.arange(6.0).reshape(2, 3).astype(jnp.bfloat16)}, make_optimizer({'ema': 0.5}, 10))
  copies = EmergencyCopies(tmp_path, str(tmp_path / 'disk'), 1)
  copies(4, state, {})
  like = shapes_at(state, jax.tree.map(lambda leaf: leaf.sharding, state))
  assert copies.newest(like) == 4
  found = copies.restore(like, 4)
  assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda leaf: leaf.dtype, state)
  assert_same(found, state)


def test_what_is_not_finite_is_not_copied(tmp_path):
  state = init_state({'w': jnp.array([1.0, jnp.nan])}, make_optimizer({}, 10))
  EmergencyCopies(tmp_path, str(tmp_path / 'disk'), 1)(4, state, {})
  assert not list(pathlib.Path(tmp_path).rglob('*.npz'))


def test_bad_flags_are_one_line(tmp_path):
  with pytest.raises(UserError, match='--emergency_every=0 must be at least 1'):
    EmergencyCopies(tmp_path, str(tmp_path), 0)
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match=f'--emergency_dir={tmp_path}/file can not be made: Not a directory'):
    EmergencyCopies(tmp_path, str(tmp_path / 'file'), 1)
