"""One run of several processes: equal to one process, interchangeable with it, and ended together."""

import json
import pathlib
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from gpt_jax.training.checkpoints import latest_step
from tests.experiments.program import TINY, Ended, call, ended, together
from tests.experiments.test_pretrain import TEXT

STEPS = 60


def flags(text: pathlib.Path, workdir: pathlib.Path, *others: str) -> list[str]:
  mesh = ['--config.mesh.data=-1', '--config.mesh.fsdp=2']
  counts = [f'--config.num_steps={STEPS}', '--config.checkpoint_every=20', '--config.keep_checkpoints=9']
  rate = '--config.optimizer.learning_rate=1e-3'
  sample = ['--config.sample.prompt=the quick', '--config.sample.max_new_tokens=5']
  return [
    f'--config={TINY}', f'--config.data.source=file:{text}', f'--workdir={workdir}', *counts, *mesh, *sample, rate,
    *others,
  ]  # fmt: skip


def metrics(workdir: pathlib.Path) -> dict[tuple[int, str], float]:
  """Every number that a run logged, by its step and name, but for times."""
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  found = [
    ((line['step'], name), value)
    for line in lines
    for name, value in line.items()
    if name != 'step' and 'second' not in name
  ]
  assert len(found) == len(dict(found)), 'two processes wrote, or steps were logged twice'
  return dict(found)


def assert_alike(ours: pathlib.Path, theirs: pathlib.Path) -> None:
  one, other = metrics(ours), metrics(theirs)
  assert list(one) == list(other)
  for (step, name), value in other.items():
    assert one[step, name] == pytest.approx(value, rel=1e-5, abs=1e-6), f'{name} of step {step}'


def codes(processes: list[Ended]) -> list[int]:
  return [process.code for process in processes]


@pytest.fixture(scope='module')
def text(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('text') / 'text.txt'
  path.write_text(TEXT * 100)
  return path


@pytest.fixture(scope='module')
def whole(text, tmp_path_factory) -> pathlib.Path:
  """A run of one process with four devices."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  done = ended(together('pretrain', *flags(text, workdir), processes=1, devices=4))
  assert codes(done) == [0], done
  return workdir


def test_sigterm_at_one_process_stops_all_and_one_process_goes_on(text, whole, tmp_path, capfd):
  workdir = tmp_path / 'run'
  processes = together('pretrain', *flags(text, workdir), processes=2, devices=2)
  while not (workdir / 'metrics.jsonl').exists() and processes[0].poll() is None:
    time.sleep(0.05)
  processes[1].send_signal(signal.SIGTERM)
  first, second = ended(processes)
  assert [first.code, second.code] == [128 + signal.SIGTERM] * 2, (first, second)
  step = latest_step(workdir)
  assert step is not None and 0 < step < STEPS
  assert f'Stopped and saved after step {step}.' in first.out and step % 20
  assert 'step' not in second.out + second.err, 'two processes speak'
  again = call(capfd, 'pretrain', *flags(text, workdir), devices=8)
  assert again.code == 0 and f'after step {step}' in again.out, again.err
  assert_alike(workdir, whole)


def test_several_processes_go_on_from_one(text, whole, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(whole, workdir, ignore=shutil.ignore_patterns('result.json', 'tensorboard', '40', '60'))
  first, second = ended(together('pretrain', *flags(text, workdir), processes=2, devices=2))
  assert [first.code, second.code] == [0, 0], (first, second)
  assert 'Resuming' in first.out and 'Resuming' not in second.out
  assert_alike(workdir, whole)
  assert len(list((workdir / 'tensorboard').iterdir())) == 1
  result, expected = (json.loads((folder / 'result.json').read_text()) for folder in (workdir, whole))
  assert result.pop('speed')['devices'] == expected.pop('speed')['devices'] == '4 x cpu'
  assert list(result) == list(expected)
  np.testing.assert_allclose(list(result.values()), list(expected.values()), rtol=1e-5)


def test_an_error_of_one_process_ends_all(text, tmp_path):
  """Its line is shown, and the other, which waits for it, does not wait for ever."""
  missing = flags(tmp_path / 'missing.txt', tmp_path / 'run')
  first, second = ended(
    together('pretrain', *missing, processes=2, devices=2, last=[f'--config.data.source=file:{text}'])
  )
  assert first.code == 2 and second.code != 0
  assert 'timed out' not in second.err, 'it waited until its patience was at an end'
  assert first.err.startswith(f"error: process 0 of 2: source 'file:{tmp_path / 'missing.txt'}'"), first.err


def test_errors_of_all_are_said_by_all(tmp_path):
  missing, other = (f'--config.data.source=file:{tmp_path / name}.txt' for name in ('missing', 'other'))
  done = ended(together('pretrain', *flags(tmp_path, tmp_path / 'run'), missing, processes=2, devices=2, last=[other]))
  for number, (process, name) in enumerate(zip(done, ('missing', 'other'), strict=True)):
    assert process.code == 2
    said = [line for line in process.err.splitlines() if line.startswith('error')]
    assert len(said) == 1 and said[0].startswith(f"error: process {number} of 2: source 'file:{tmp_path / name}.txt'")


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    (['--num_processes=2'], '--coordinator_address and --process_id missing beside --num_processes'),
    (['--coordinator_address=h:1', '--num_processes=2', '--process_id=2'], '--process_id=2 must be from 0 to below'),
    (['--coordinator_address=h', '--num_processes=2', '--process_id=1'], '--coordinator_address=h must be HOST:PORT'),
    (['--distributed', '--process_id=1'], '--distributed finds all by itself: leave out --process_id'),
    (['--distributed'], 'this process can not join the others ('),
  ],
)
def test_wrong_flags_are_one_line(text, tmp_path, capfd, given, message):
  jax.devices()  # JAX refuses to join late too, but flags are looked at first
  done = call(capfd, 'pretrain', *flags(text, tmp_path / 'run'), *given)
  assert done.code == 2 and done.err.startswith('error: ') and message in done.err, done.err
  assert len(done.err.splitlines()) == 1


@pytest.mark.slow
def test_copies_on_each_machine_serve_when_all_are_killed(text, whole, tmp_path):
  """The step that both have a copy of, between the checkpoints after 20 and 40."""
  workdir, copying = tmp_path / 'run', [f'--emergency_dir={tmp_path / "disk"}', '--emergency_every=1']
  processes = together('pretrain', *flags(text, workdir), *copying, processes=2, devices=2)
  logged = lambda: metrics(workdir) if (workdir / 'metrics.jsonl').exists() else {}
  while processes[0].poll() is None and not any(step >= 30 for step, _ in logged()):
    time.sleep(0.01)
  for process in processes:
    process.kill()
    process.communicate()
  kept = [{int(path.stem) for path in folder.glob('*.npz')} for folder in (tmp_path / 'disk').glob('*/*')]
  assert len(kept) == 2 and latest_step(workdir) == 20
  first, second = ended(together('pretrain', *flags(text, workdir), *copying, processes=2, devices=2))
  assert [first.code, second.code] == [0, 0], (first, second)
  assert f'after step {max(kept[0] & kept[1])}, by the copies' in first.out and max(kept[0] & kept[1]) > 20
  assert_alike(workdir, whole)


@pytest.mark.slow
def test_four_processes_are_one(text, whole, tmp_path):
  """Of which two share the rows that they read, as each has a half of every tensor."""
  mesh = ['--config.mesh.fsdp=2', '--config.mesh.tensor=2']
  done = ended(together('pretrain', *flags(text, tmp_path / 'run', *mesh), processes=4, devices=1))
  assert codes(done) == [0] * 4, done
  assert_alike(tmp_path / 'run', whole)
