"""Whole runs: broken and resumed, on one device and on eight, refused, ended by signals and by NaN."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from toy_run import batch_of, config, source, toy, validation

from gpt_jax.training import program
from gpt_jax.training.checkpoints import latest_step
from gpt_jax.training.logs import read_lines
from gpt_jax.training.workdir import prepare
from gpt_jax.types import UserError

TIMINGS = {'tokens_per_second', 'seconds'}


def lines_of(workdir):
  return [{name: value for name, value in line.items() if name not in TIMINGS} for line in read_lines(workdir)]


def assert_same(ours, theirs):
  for (path, left), right in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_array_equal(np.asarray(left), np.asarray(right), err_msg=str(path))


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('unbroken')
  return workdir, toy(workdir)


def test_finished_run_leaves_what_it_promises(unbroken, capsys):
  workdir, state = unbroken
  assert int(state.step) == 40
  lines = read_lines(workdir)
  assert [line['step'] for line in lines if 'loss' in line] == [1, *range(4, 41, 4)]
  assert [line['step'] for line in lines if 'validation_loss' in line] == [0, 10, 20, 30, 40]
  assert lines[2]['tokens'] == 4 * 8 * 12
  validation = [line['validation_loss'] for line in lines if 'validation_loss' in line]
  assert validation[-1] < validation[0]
  result = json.loads((workdir / 'result.json').read_text())
  assert result['step'] == 40
  assert result['validation_loss'] == validation[-1]
  assert result['best_validation_loss'] == min(validation)
  assert result['parameters'] == 2 * 24 * 16
  assert result['speed']['tokens_per_second'] > 0
  assert 0 < result['speed']['mfu_palm'] < 1
  assert result['speed']['peak_source'] == 'measured float32 matmul'
  saved = json.loads((workdir / 'config.json').read_text())
  assert saved['config'] == config()
  assert saved['seed'] == 3
  assert saved['versions']['jax'] == jax.__version__
  assert {path.name for path in (workdir / 'plots').iterdir()} == {'loss.png', 'learning_rate.png', 'grad_norm.png'}
  assert list((workdir / 'tensorboard').iterdir())
  before = (workdir / 'metrics.jsonl').read_bytes()
  capsys.readouterr()
  assert toy(workdir) is None
  assert 'is finished' in capsys.readouterr().out
  assert (workdir / 'metrics.jsonl').read_bytes() == before


def test_parameter_table_is_printed(tmp_path, capsys):
  toy(tmp_path, config(num_steps=1))
  printed = capsys.readouterr().out
  assert re.search(r'embed/embedding +24 x 16 +384', printed)
  assert re.search(r'total +768', printed)


def test_what_does_not_fit_is_refused_before_it_is_compiled(tmp_path, monkeypatch, capsys):
  """Parameters, two moments and their average, of 4 bytes each, over eight devices by `fsdp`; and counts."""
  needed = 4 * 768 * 4 / 8 + 8
  fields = config(num_steps=1, mesh={'fsdp': 8})
  monkeypatch.setattr(program, 'device_memory', lambda: (needed - 1, 'a part of it'))
  with pytest.raises(UserError, match=r'moments, of 0.0 GiB \(a part of it\): spread them by config.mesh.fsdp'):
    toy(tmp_path, fields)
  assert not (tmp_path / 'metrics.jsonl').exists()
  monkeypatch.setattr(program, 'device_memory', lambda: (needed + 12, 'all of it'))
  toy(tmp_path, fields)
  assert 'Each device has 0.00 GiB of parameters and moments, of 0.0 GiB' in capsys.readouterr().out


def test_killed_run_resumes_bit_for_bit(unbroken, tmp_path):
  """kill -9 at a random moment of another process; the same run then ends as if nothing had happened."""
  killed_after = random.randrange(2, 36)
  program = [sys.executable, str(pathlib.Path(__file__).with_name('toy_run.py')), str(tmp_path)]
  environment = {**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).parents[2])}
  with (tmp_path / 'stderr').open('w') as errors:
    process = subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
  end = time.monotonic() + 60
  while not any(line['step'] >= killed_after for line in read_lines(tmp_path)) and time.monotonic() < end:
    assert process.poll() is None, (tmp_path / 'stderr').read_text()
    time.sleep(0.01)
  time.sleep(random.random() * 0.2)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (tmp_path / 'result.json').exists()
  resumed = toy(tmp_path)
  assert_same(resumed, unbroken[1])
  assert lines_of(tmp_path) == lines_of(unbroken[0]), f'killed after step {killed_after}'


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_says_how_to_resume(unbroken, tmp_path, capsys, number):
  def interrupted(index, state):
    if index == 12:
      os.kill(os.getpid(), number)
    return source(index, state)

  before = signal.getsignal(number)
  with pytest.raises(SystemExit) as stopped:
    toy(tmp_path, source=interrupted)
  assert stopped.value.code == 128 + number
  assert signal.getsignal(number) == before
  assert 'saved after step 13. The same command goes on from there' in capsys.readouterr().out
  assert latest_step(tmp_path) == 13
  assert_same(toy(tmp_path), unbroken[1])
  assert lines_of(tmp_path) == lines_of(unbroken[0])


def test_evaluation_lost_by_a_crash_is_made_up(unbroken, tmp_path):
  """The checkpoint comes before the evaluation; a resumed run evaluates what the crash left out."""

  calls = []

  def crash(params):
    calls.append(params)
    if len(calls) == 2:  # the first is that of the start
      raise MemoryError
    return {'loss': validation(params)}

  with pytest.raises(MemoryError):
    toy(tmp_path, evaluations={'validation': crash})
  assert latest_step(tmp_path) == 10
  assert_same(toy(tmp_path), unbroken[1])
  assert lines_of(tmp_path) == lines_of(unbroken[0])


def test_one_device_and_eight(unbroken, tmp_path):
  """The same losses on any mesh; a run stopped on one device goes on on eight, fully sharded, and back."""
  one, eight = jax.devices()[:1], {'data': 2, 'fsdp': 2, 'tensor': 2}
  losses = lambda workdir: [line['loss'] for line in read_lines(workdir) if 'loss' in line]

  def stop_at(last):
    def stopping(index, state):
      if index == last:
        os.kill(os.getpid(), signal.SIGTERM)
      return source(index, state)

    return stopping

  with pytest.raises(SystemExit):
    toy(tmp_path, source=stop_at(11), devices=one)
  with pytest.raises(SystemExit):
    toy(tmp_path, config(mesh=eight), source=stop_at(23))
  state = toy(tmp_path, devices=one)
  np.testing.assert_allclose(losses(tmp_path), losses(unbroken[0]), rtol=1e-5)
  np.testing.assert_allclose(
    np.asarray(state.params['head']['kernel']), np.asarray(unbroken[1].params['head']['kernel']), atol=1e-4
  )


def test_nan_names_step_and_rows_and_saves_nothing(tmp_path):
  def broken(index, state):
    batch = batch_of(index)
    return [{**batch, 'weights': batch['weights'] * (np.nan if index == 7 else 1)}]

  with pytest.raises(UserError, match=r'^loss of step 8 is nan; its batch was rows 56\.\.63; [^\n]*$'):
    toy(tmp_path, config(checkpoint_every=1), source=broken)
  assert latest_step(tmp_path) == 7
  assert [line['step'] for line in read_lines(tmp_path) if 'loss' in line] == [1, 4]
  assert 'loss of step 8 is nan' in json.loads((tmp_path / 'diverged.json').read_text())['message']
  toy(tmp_path, config(checkpoint_every=1))
  assert (tmp_path / 'result.json').exists() and not (tmp_path / 'diverged.json').exists()


def test_parameters_that_overflow_are_not_saved(tmp_path):
  with pytest.raises(UserError, match=r'not finite after step 1: lower optimizer.learning_rate'):
    toy(tmp_path, config(checkpoint_every=1, optimizer={'learning_rate': 1e39, 'warmup_steps': 0}))
  assert latest_step(tmp_path) is None
  assert (tmp_path / 'diverged.json').exists()
  prepare(tmp_path, config(checkpoint_every=1))
  assert not (tmp_path / 'diverged.json').exists(), 'what another config did says nothing of this one'


def test_a_result_parts_what_the_machine_decides_from_what_it_does_not(unbroken, tmp_path):
  toy(tmp_path, summary=lambda params: {'cache': 3, 'speed': {'decoding': 4.0}})
  ours, theirs = (json.loads((folder / 'result.json').read_text()) for folder in (tmp_path, unbroken[0]))
  assert ours.pop('cache') == 3 and ours['speed']['decoding'] == 4.0
  assert {**ours, 'speed': None} == {**theirs, 'speed': None}


def test_what_a_run_adds_of_its_data_is_asked_of_no_one_else(unbroken):
  """A sweep finds its points finished by what it knows of them; a run itself knows its steps."""
  known = {name: value for name, value in config().items() if name != 'num_steps'}
  assert prepare(unbroken[0], known)
  with pytest.raises(UserError, match=r'config.seed is 4 but'):
    prepare(unbroken[0], {**known, 'seed': 4})
  with pytest.raises(UserError, match=r'config.num_steps is 41 but'):
    prepare(unbroken[0], {**known, 'num_steps': 41})


@pytest.mark.parametrize(('best', 'step'), [(None, 2), (('validation_loss', True), 3), (('held_out_reward', True), 1)])
def test_keeps_the_last_and_the_best(best, step, tmp_path):
  losses, rewards = iter([2.0, 3.0, 1.0, 9.0, 4.0, 5.0, 6.0]), iter([0.1, 0.9, 0.2, 0.3, 0.4, 0.5, 0.6])
  fields = config(num_steps=6, eval_every=1, keep_checkpoints=2)
  evaluations = {
    'validation': lambda params: {'loss': next(losses)}, 'held_out': lambda params: {'reward': next(rewards)}
  }  # fmt: skip
  toy(tmp_path, fields, evaluations=evaluations, **({'best': best} if best else {}))
  assert {path.name for path in (tmp_path / 'checkpoints').iterdir()} == {str(step), '5', '6'}
  result = json.loads((tmp_path / 'result.json').read_text())
  assert result['best_step'] == step
  assert result[f'best_{best[0] if best else "validation_loss"}'] == {1: 0.9, 2: 1.0, 3: 9.0}[step]


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'optimizer': {'learning_rate': 2e-2}}, r'config.optimizer.learning_rate is 0.02 but .* was begun with 0.01'),
    ({'num_steps': 50}, r'config.num_steps is 50 but .* was begun with 40'),
    ({'extra': 1}, r'config.extra is 1 but .* was begun with absent'),
  ],
)
def test_another_config_is_refused(unbroken, fields, message):
  before = (unbroken[0] / 'config.json').read_bytes()
  with pytest.raises(UserError, match=message):
    toy(unbroken[0], config(**fields))
  assert (unbroken[0] / 'config.json').read_bytes() == before


def test_where_a_run_runs_may_change(unbroken):
  assert toy(unbroken[0], config(mesh={'data': -1, 'tensor': 2}, microbatches=2)) is None


def test_broken_folders_are_refused(tmp_path):
  (tmp_path / 'config.json').write_text('{"config": {')
  with pytest.raises(UserError, match=r'config\.json can not be read'):
    toy(tmp_path)
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(UserError, match=r"config\.json is not a run's config"):
    toy(tmp_path)
  (tmp_path / 'config.json').unlink()
  (tmp_path / 'checkpoints' / '5').mkdir(parents=True)
  with pytest.raises(UserError, match=r'has checkpoints but no config\.json'):
    toy(tmp_path)
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='can not be made'):
    toy(tmp_path / 'file' / 'run')


def test_empty_data_is_refused(tmp_path):
  with pytest.raises(UserError, match='no batch for step 1: is the data set empty'):
    toy(tmp_path, source=lambda index, state: [])
