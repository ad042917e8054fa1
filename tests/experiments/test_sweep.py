"""Sweeps from the command line to their tables: broken and resumed, crashed, diverged, refused, on every launcher."""

from concurrent.futures import ThreadPoolExecutor
import json
import os
import pathlib
import signal
import subprocess
import time
import types

import pandas as pd
import pytest

from configs.sweeps.points import chain, param, product, seeds, zipped
from experiments import language, launchers
from experiments.launchers import Task
from experiments.sweep_file import load
from gpt_jax.types import UserError
from tests.experiments.program import ROOT, command_line, spawn
from tests.experiments.small_sweep import written

SWEEPS = sorted(path for path in (ROOT / 'configs/sweeps').glob('*.py') if path.stem not in ('__init__', 'points'))


@pytest.fixture(scope='session', autouse=True)
def cache(tmp_path_factory):
  os.environ['GPT_JAX_CACHE'] = str(tmp_path_factory.mktemp('cache'))


def flags(sweep: pathlib.Path, workdir: pathlib.Path, *others: str) -> list[str]:
  return [f'--sweep={sweep}', f'--workdir={workdir}', f'--results={workdir}/docs', *others]


def results(workdir: pathlib.Path) -> dict[str, dict]:
  """By point, without what the machine decides."""
  found = {}
  for path in sorted(workdir.glob('points/*/result.json')):
    found[path.parent.name] = {name: value for name, value in json.loads(path.read_text()).items() if name != 'speed'}
  return found


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('unbroken')
  ended = spawn('sweep', *flags(written(folder), folder / 'runs', '--jobs=2'))
  assert ended.code == 0, ended
  return folder


# ---- points ---------------------------------------------------------------------------------------------------------


def test_points_are_built_in_order():
  assert product(seeds(2), param('a', 'xy')) == [
    {'seed': 0, 'a': 'x'}, {'seed': 0, 'a': 'y'}, {'seed': 1, 'a': 'x'}, {'seed': 1, 'a': 'y'},
  ]  # fmt: skip
  assert zipped(param('a', [1, 2]), param('b', [3, 4])) == [{'a': 1, 'b': 3}, {'a': 2, 'b': 4}]
  assert chain(param('a', [1]), param('b', [2])) == [{'a': 1}, {'b': 2}]
  with pytest.raises(ValueError, match='a is set twice'):
    product(param('a', [1]), param('a', [2]))
  with pytest.raises(ValueError, match='argument 2'):
    zipped(param('a', [1, 2]), param('b', [3]))


@pytest.mark.parametrize('path', SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_is_whole(path, tmp_path, monkeypatch):
  """Every point a config that is right, every comparison of points that are there, five seeds, and its command.

  Sweeps that are long have three. Of what is aligned some settings have two; the models that their sweeps begin from
  need not be there.
  """
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(language, 'weights', lambda name: types.SimpleNamespace(begin=()))
  sweep = load(str(path), str(tmp_path))
  counts = pd.DataFrame([{k: repr(v) for k, v in p.items() if k != 'seed'} for p in sweep.points]).value_counts()
  assert set(counts) in ({3}, {5}) or (sweep.spec['experiment'] != 'pretrain' and set(counts) <= {2, 5})
  assert f'--sweep=configs/sweeps/{path.name} --workdir=runs/{path.stem}' in path.read_text()


# ---- whole sweeps ---------------------------------------------------------------------------------------------------


def test_a_sweep_leaves_a_table_and_a_page(unbroken):
  table = pd.read_csv(unbroken / 'runs/table.csv')
  assert table['status'].tolist() == ['finished'] * 4
  assert table['model.residual'].tolist() == ['pre', 'post'] * 2 and table['seed'].tolist() == [0, 0, 1, 1]
  assert table['validation_loss'].nunique() == 4
  lines = [json.loads(line) for line in (unbroken / 'runs/table.jsonl').read_text().splitlines()]
  assert [line['validation_loss'] for line in lines] == pytest.approx(table['validation_loss'].tolist())
  assert not [name for name in table if 'speed' in name or 'seconds' in name], 'times would differ from run to run'
  assert (pd.read_csv(unbroken / 'runs/times.csv')['speed.tokens_per_second'] > 0).all()
  assert 'Pre-norm is lower.' in (unbroken / 'runs/docs/small/README.md').read_text()


def test_killed_anywhere_and_run_again_it_is_unbroken(unbroken, tmp_path):
  """kill -9 of the sweep while its points go on without it; the next one waits for them."""
  workdir = tmp_path / 'runs'
  process = subprocess.Popen(
    **command_line('sweep', flags(unbroken / 'small.py', workdir, '--jobs=2')), stdout=subprocess.DEVNULL
  )
  while process.poll() is None and not list(workdir.glob('points/*/metrics.jsonl')):
    time.sleep(0.05)
  process.kill()
  process.wait()
  assert not (workdir / 'table.csv').exists() or 'missing' in (workdir / 'table.csv').read_text()
  again = spawn('sweep', *flags(unbroken / 'small.py', workdir, '--jobs=2'))
  assert again.code == 0, again
  for name in ('table.csv', 'table.jsonl'):
    assert (workdir / name).read_bytes() == (unbroken / 'runs' / name).read_bytes()
  for log in workdir.glob('points/*/log.txt'):
    assert log.read_text().count('has result.json') == 1, 'a point ran twice'


def test_a_finished_sweep_runs_nothing(unbroken):
  before = {path: path.stat().st_mtime_ns for path in unbroken.glob('runs/points/**/*')}
  ended = spawn('sweep', *flags(unbroken / 'small.py', unbroken / 'runs'))
  assert ended.code == 0 and '4 of them finished before' in ended.out
  assert before == {path: path.stat().st_mtime_ns for path in unbroken.glob('runs/points/**/*')}


@pytest.mark.parametrize(
  ('how', 'points'), [('--index=1', 1), pytest.param('--launcher=ray', 2, marks=pytest.mark.slow)]
)
def test_a_point_is_the_same_wherever_it_runs(unbroken, tmp_path, how, points):
  pytest.importorskip('ray')
  sweep = written(tmp_path, **{'seeds(2)': 'seeds(1)', f'file:{tmp_path}': f'file:{unbroken}'})
  ended = spawn('sweep', *flags(sweep, tmp_path / 'runs', how, '--jobs=2'))
  assert ended.code == 0, ended
  assert len(results(tmp_path / 'runs')) == points
  assert results(tmp_path / 'runs').items() <= results(unbroken / 'runs').items()


def test_a_point_that_crashes_does_not_stop_the_others(tmp_path):
  broken = "{**POST, 'data.held_out': 0.0}"  # nothing to evaluate, which shows only when it runs
  sweep = written(
    tmp_path, **{'seeds(2), [PRE, POST]': f'seeds(1), [PRE, {broken}]', "'than': POST": f"'than': {broken}"}
  )
  ended = spawn('sweep', *flags(sweep, tmp_path / 'runs'))
  assert ended.code == 1 and '1 points crashed' in ended.err and 'crashed twice: error: source' in ended.out, ended
  assert pd.read_csv(tmp_path / 'runs/table.csv')['status'].tolist() == ['finished', 'crashed']
  (log,) = tmp_path.glob('runs/points/*residual=post*/log.txt')
  assert log.read_text().count('error: ') == 2, 'tried once more'
  assert not (tmp_path / 'runs/docs').exists()


def test_a_point_that_diverges_is_a_result(tmp_path):
  sweep = written(tmp_path, {'optimizer.learning_rate': 1e30, 'optimizer.clip_norm': 0.0}, **{'seeds(2)': 'seeds(1)'})
  ended = spawn('sweep', *flags(sweep, tmp_path / 'runs', '--jobs=2'))
  assert ended.code == 0, ended
  table = pd.read_csv(tmp_path / 'runs/table.csv')
  assert table['status'].tolist() == ['diverged'] * 2
  (log, _) = tmp_path.glob('runs/points/*/log.txt')
  assert log.read_text().count('error: ') == 1, 'it would diverge again'


# ---- refused before anything runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('more', 'replaced', 'message'),
  [
    ({'model.resdual': 'pre'}, {}, "a point sets 'model.resdual', which the config has not; did you mean"),
    ({'model.norm': 'rsm'}, {}, "config.model.norm = 'rsm': no part is named 'rsm'; did you mean 'rms'?"),
    ({'num_layers': 2}, {}, "did you mean 'model.num_layers'?"),
    ({'context': 'long'}, {}, "context = 'long'"),
    ({'optimizer.name': 'adam'}, {}, "did you mean 'adamw'?"),
    ({}, {"'than': POST": "'than': {'model.residual': 'parallel'}"}, 'which is no point'),
    ({}, {"'baseline': PRE": "'baseline': {'model.norm': 'rms'}"}, 'no point has the baseline'),
    ({}, {"'is': 'lower'": "'is': 'less'"}, "is 'alike' with metric, of, than, margin"),
    ({}, {"'than': POST, ": ''}, "known: is 'lower' with metric, of, than"),
    ({}, {"'is': 'lower'": "'is': 'alike'"}, "is 'alike' with metric, of, than, margin"),
    ({}, {"'claim'": "'clam'"}, "has no 'claim'"),
    ({}, {'tiny.py': 'tny.py'}, 'configs/pretrain/tny.py'),
    ({}, {'seeds(2)': 'seeds(0)'}, 'has no points'),
    ({}, {'get_sweep()': 'sweep()'}, 'get_sweep'),
  ],
)  # fmt: skip
def test_a_wrong_sweep_is_one_line(tmp_path, monkeypatch, more, replaced, message):
  monkeypatch.chdir(ROOT)
  with pytest.raises(UserError) as raised:
    load(str(written(tmp_path, more, **replaced)), str(tmp_path / 'runs'))
  assert message in str(raised.value) and '\n' not in str(raised.value)
  assert not (tmp_path / 'runs').exists()


def test_a_wrong_sweep_ends_with_code_2_before_anything_runs(tmp_path):
  ended = spawn('sweep', *flags(written(tmp_path, {'model.resdual': 'pre'}), tmp_path / 'runs'))
  assert ended.code == 2 and len(ended.err.splitlines()) == 1 and "did you mean 'model.residual'?" in ended.err
  assert not (tmp_path / 'runs').exists()


def test_an_index_beyond_the_points(unbroken, tmp_path):
  ended = spawn('sweep', *flags(unbroken / 'small.py', tmp_path / 'runs', '--index=4'))
  assert ended.code == 2 and '--index=4 is not one of the 4 points' in ended.err


def test_points_of_another_config_are_refused(unbroken, tmp_path):
  before = {path: path.read_bytes() for path in unbroken.glob('runs/points/*/*.json')}
  sweep = written(tmp_path, {'context': 16}, **{f'file:{tmp_path}': f'file:{unbroken}'})
  for point in unbroken.glob('runs/points/*'):
    (tmp_path / 'runs/points').mkdir(parents=True, exist_ok=True)
    (tmp_path / 'runs/points' / f'{point.name},context=16').symlink_to(point)
  ended = spawn('sweep', *flags(sweep, tmp_path / 'runs'))
  assert ended.code == 2 and 'config.context is 16 but' in ended.err, ended
  assert before == {path: path.read_bytes() for path in unbroken.glob('runs/points/*/*.json')}


def test_a_dry_run_lists_points_and_time_and_leaves_nothing(unbroken, tmp_path):
  ended = spawn('sweep', *flags(unbroken / 'small.py', tmp_path / 'runs', '--dry_run'))
  lines = ended.out.splitlines()
  assert ended.code == 0 and len(lines) == 5 and 'missing' in lines[0] and 'residual=post' in lines[1]
  assert lines[-1].startswith('4 of 4 points to run: ') and 'minutes at a third of' in lines[-1]
  assert not (tmp_path / 'runs').exists()
  ended = spawn('sweep', *flags(unbroken / 'small.py', unbroken / 'runs', '--dry_run'))
  assert '0 of 4 points to run' in ended.out and 'by the speed of what is finished' in ended.out


# ---- launchers ------------------------------------------------------------------------------------------------------


def task(folder: pathlib.Path, script: str) -> Task:
  return Task('point', ('sh', '-c', script), str(folder), 3, str(folder.parent))


SUCCEED = 'echo ran $NPROC; echo {} > point/result.json'


def test_a_crash_is_tried_once_more(tmp_path):
  once = task(tmp_path / 'point', f'test -e once && {{ {SUCCEED}; }} || {{ touch once; kill -9 $$; }}')
  assert launchers.run(once) == 'finished'
  assert (tmp_path / 'point/log.txt').read_text() == 'ran 3\n', 'the threads of the point, whatever the machine has'
  assert launchers.run(once) == 'finished'
  assert (tmp_path / 'point/log.txt').read_text() == 'ran 3\n', 'what is finished does not run again'


def test_a_second_crash_is_noted_and_the_next_sweep_tries_again(tmp_path):
  crash = task(tmp_path / 'point', 'echo failed; exit 7')
  assert launchers.run(crash) == 'crashed'
  assert json.loads((tmp_path / 'point/crashed.json').read_text()) == {'code': 7, 'message': 'failed'}
  assert launchers.run(task(tmp_path / 'point', SUCCEED)) == 'finished'
  assert not (tmp_path / 'point/crashed.json').exists()


def test_a_point_does_not_run_twice_at_a_time(tmp_path):
  slow = task(tmp_path / 'point', f'sleep 1; {SUCCEED}')
  with ThreadPoolExecutor(2) as pool:
    assert list(pool.map(launchers.run, [slow, slow])) == ['finished'] * 2
  assert (tmp_path / 'point/log.txt').read_text() == 'ran 3\n'


def test_points_stop_with_their_sweep(unbroken, tmp_path):
  sweep = written(tmp_path, {'num_steps': 100_000}, **{'seeds(2)': 'seeds(1)'})
  process = subprocess.Popen(
    **command_line('sweep', flags(sweep, tmp_path / 'runs', '--jobs=2')), stdout=subprocess.PIPE, text=True
  )
  while process.poll() is None and len(list(tmp_path.glob('runs/points/*/checkpoints/*'))) < 2:
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=60) == 130
  logs = [path.read_text() for path in tmp_path.glob('runs/points/*/log.txt')]
  assert len(logs) == 2 and all('Stopped and saved after step' in log for log in logs), logs
  assert not list(tmp_path.glob('runs/points/*/crashed.json'))


def test_slurm_by_submitit_on_this_machine(tmp_path):
  """submitit's own executor for one machine stands in for Slurm."""
  pytest.importorskip('submitit')
  tasks = [task(tmp_path / 'points' / 'point', SUCCEED.replace('point/', f'{tmp_path}/points/point/'))]
  ended = []
  launchers.slurm(tasks, 1, lambda done, status: ended.append((done.name, status)), cluster='local')
  assert ended == [('point', 'finished')]
