"""Pretraining from the command line to the files it leaves."""

import json
import math
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from experiments import language, reading
from gpt_jax.data import tokenizers
from gpt_jax.data.rows import Rows, tokenize
from gpt_jax.data.sources import documents
from tests.experiments import speaker
from tests.experiments.program import TINY, call, command_line, spawn

TEXT = 'the quick brown fox jumps over the lazy dog; '


@pytest.fixture(scope='session', autouse=True)
def cache(tmp_path_factory):
  os.environ['GPT_JAX_CACHE'] = str(tmp_path_factory.mktemp('cache'))


@pytest.fixture
def text(tmp_path) -> pathlib.Path:
  path = tmp_path / 'text.txt'
  path.write_text(TEXT * 100)
  return path


def lines(workdir: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def losses(workdir: pathlib.Path) -> dict[int, float]:
  return {line['step']: line['loss'] for line in lines(workdir) if 'loss' in line}


def flags(text: pathlib.Path, workdir: pathlib.Path, *others: str) -> list[str]:
  return [f'--config={TINY}', f'--config.data.source=file:{text}', f'--workdir={workdir}', *others]


@pytest.fixture(scope='session')
def trained(tmp_path_factory) -> pathlib.Path:
  """A finished run, with its text beside it."""
  folder = tmp_path_factory.mktemp('trained')
  (folder / 'text.txt').write_text(TEXT * 100)
  ended = spawn('pretrain', *flags(folder / 'text.txt', folder / 'run', '--config.num_steps=150'))
  assert ended.code == 0, ended.err
  assert 'Attention: dense: plain (scores are few)' in ended.out.splitlines()
  return folder / 'run'


def test_it_learns_and_leaves_what_it_promises(trained):
  curve = losses(trained)
  assert list(curve) == list(range(1, 151))
  assert abs(curve[1] - math.log(len(set(TEXT)))) < 0.2, 'the first loss is not that of a uniform guess'
  assert curve[150] < 0.3
  result = json.loads((trained / 'result.json').read_text())
  for field in ('validation_loss', 'validation_bits_per_byte', 'parameters'):
    assert result[field] > 0, field
  assert 0 < result['training_flops_causal'] < result['training_flops']
  for field in ('tokens_per_second', 'mfu_palm', 'mfu_causal', 'seconds'):
    assert result['speed'][field] > 0, field
  config = json.loads((trained / 'config.json').read_text())
  assert config['seed'] == 0 and 'jax' in config['versions']
  assert [path.name for path in sorted((trained / 'checkpoints').iterdir())][-1] == '150'
  assert (trained / 'plots' / 'loss.png').read_bytes()[:4] == b'\x89PNG'
  assert list((trained / 'tensorboard').iterdir())


def test_validation_counts_every_held_out_character_once(trained, capfd):
  """The held-out tenth has 450 characters of one byte; all but the first are predicted, in nats over log 2."""
  result = json.loads((trained / 'result.json').read_text())
  bits = result['validation_loss'] * 449 / math.log(2) / 450
  assert result['validation_bits_per_byte'] == pytest.approx(bits, rel=1e-5)
  ended = call(capfd, 'evaluate', f'--model={trained}', '--batch_size=3')
  assert json.loads(ended.out)['loss'] == pytest.approx(result['validation_loss'], rel=1e-5)


def test_a_finished_run_says_so_and_stops(trained, capfd):
  before = (trained / 'metrics.jsonl').read_bytes()
  ended = call(capfd, 'pretrain', *flags(trained.parent / 'text.txt', trained, '--config.num_steps=150'))
  assert ended.code == 0 and 'is finished' in ended.out
  assert (trained / 'metrics.jsonl').read_bytes() == before


def test_the_trained_model_recites(trained):
  ended = spawn('generate', f'--model={trained}', '--prompt=the quick', '--temperature=0', '--max_new_tokens=30')
  assert ended.code == 0
  assert ended.out.startswith('the quick brown fox'), ended.out


def test_generation_stops_at_a_string(trained, capfd):
  flags = [f'--model={trained}', '--prompt=the quick', '--temperature=0', '--stop=fox', '--max_new_tokens=50']
  ended = call(capfd, 'generate', *flags)
  assert ended.out == 'the quick brown fox\n'


def test_killed_and_resumed_is_unbroken(text, tmp_path):
  """Killed without warning at a random moment of its training, and run again: the same losses to the last bit."""
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  assert spawn('pretrain', *flags(text, whole, '--config.num_steps=40')).code == 0
  process = subprocess.Popen(
    **command_line('pretrain', flags(text, broken, '--config.num_steps=40')),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  while process.poll() is None and not (broken / 'checkpoints' / '5').exists():
    time.sleep(0.005)
  time.sleep(random.uniform(0, 0.5))
  process.kill()
  process.wait()
  assert not (broken / 'result.json').exists(), 'it ended before it was killed'
  again = spawn('pretrain', *flags(text, broken, '--config.num_steps=40'))
  assert again.code == 0, again.err
  assert 'Resuming' in again.out
  assert losses(broken) == losses(whole)


def test_decoding_has_a_speed_and_a_share_of_memorys(text, tmp_path):
  measure = ['--config.num_steps=1', '--config.measure.decoding_rows=2', '--config.measure.decoding_tokens=8']
  assert spawn('pretrain', *flags(text, tmp_path / 'run', *measure)).code == 0
  speed = json.loads((tmp_path / 'run' / 'result.json').read_text())['speed']
  assert speed['decoding_tokens_per_second'] > 0 and 0 < speed['mbu'] < 1
  assert speed['bandwidth_source'] == 'measured float32 sum of arrays'


def test_one_device_and_eight_train_alike(text, tmp_path):
  assert spawn('pretrain', *flags(text, tmp_path / 'one')).code == 0
  sizes = ['--config.mesh.data=2', '--config.mesh.fsdp=2', '--config.mesh.tensor=2']
  assert spawn('pretrain', *flags(text, tmp_path / 'eight', *sizes), devices=8).code == 0
  one, eight = losses(tmp_path / 'one'), losses(tmp_path / 'eight')
  np.testing.assert_allclose(list(eight.values()), list(one.values()), rtol=1e-4)


@pytest.mark.slow
def test_training_moves_to_eight_devices_midway(text, tmp_path, capfd):
  """A run stopped on one device goes on over eight with the batches that were to come."""
  whole, moved = tmp_path / 'whole', tmp_path / 'moved'
  assert spawn('pretrain', *flags(text, whole)).code == 0
  process = subprocess.Popen(
    **command_line('pretrain', flags(text, moved)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
  )
  while process.poll() is None:
    if (moved / 'metrics.jsonl').exists() and len((moved / 'metrics.jsonl').read_text().splitlines()) > 7:
      process.send_signal(signal.SIGTERM)
      break
    time.sleep(0.005)
  assert process.wait() == 128 + signal.SIGTERM
  again = call(capfd, 'pretrain', *flags(text, moved, '--config.mesh.tensor=2'), devices=8)
  assert again.code == 0, again.err
  np.testing.assert_allclose(list(losses(moved).values()), list(losses(whole).values()), rtol=1e-4)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (['--config.modle.num_layers=2'], "did you mean 'model'?"),
    (['--config.model.num_layer=2'], "did you mean 'num_layers'?"),
    (['--config.model.residual=pst'], "did you mean 'post'?"),
    (['--config.model.family=gpt2_smal'], "did you mean 'gpt2_small'?"),
    (['--config.model.num_heads=5'], 'config.model: num_heads = 5 must be a multiple of 2'),
    (['--config.model.vocab_size=3'], 'config.model.vocab_size = 3 is less than'),
    (['--config.context=100'], 'config.context = 100 exceeds the 64 learned positions'),
    (['--config.data.source=file:/no/such.txt'], '/no/such.txt'),
    (['--config.data.source=asset:shakespear'], "did you mean 'shakespeare'?"),
    (['--config.data.source='], 'config.data.source is empty'),
    (['--config.data.tokenizer=gpt3'], 'gpt3'),
    (['--config.data.held_out=0'], 'at least'),
    (['--config.optimizer.name=adam'], "did you mean 'adamw'?"),
    (['--config.optimizer.schedule=cosin'], "did you mean 'cosine'?"),
    (['--config.mesh.data=3'], 'devices'),
    (['--config.microbatches=3'], 'microbatches=3'),
    (['--config.batch_ramp.ramp_tokens=1000'], 'batch_ramp.first_rows = 0 must be from 1 to'),
    (['--config.optimizer.learning_rate=1e30', '--config.optimizer.clip_norm=0.0'], 'is nan; its batch was rows'),
    (['--config.batch_size=9', '--config.eval_batch_size=8'], 'batch of 9 rows'),
    (['--workdir='], '--workdir is missing'),
    (['stray'], "'stray' is not a flag"),
    *(([f'--profile={text}'], 'write FIRST:LAST, such as 10:12') for text in ('1:3', '5', '5:4', 'five:6', '3:-1')),
    (['--emergency_every=0'], '--emergency_every=0'),
  ],
)
def test_bad_input_is_one_line(text, tmp_path, capfd, changes, message):
  ended = call(capfd, 'pretrain', *flags(text, tmp_path / 'run', *changes), devices=8)
  assert ended.code == 2, ended
  said = [line for line in ended.err.splitlines() if line.startswith('error: ')]
  assert len(said) == 1 and message in said[0], ended.err
  assert 'Traceback' not in ended.err


def test_another_config_is_refused_and_harms_nothing(trained, capfd):
  before = {path: path.stat().st_mtime_ns for path in trained.rglob('*')}
  ended = call(
    capfd, 'pretrain', *flags(trained.parent / 'text.txt', trained, '--config.num_steps=150', '--config.seed=1')
  )
  assert ended.code == 2 and 'config.seed is 1' in ended.err
  assert before == {path: path.stat().st_mtime_ns for path in trained.rglob('*')}


@pytest.mark.parametrize('name', ['generate', 'evaluate'])
def test_a_model_that_is_none(name, tmp_path, capfd):
  ended = call(capfd, name, f'--model={tmp_path}', *(['--prompt=x'] if name == 'generate' else []))
  assert ended.code == 2 and f'{tmp_path} has no config.json: it is not the folder of a model' in ended.err


def test_generation_without_a_checkpoint(tmp_path, trained, capfd):
  (tmp_path / 'run').mkdir()
  for name in ('config.json', 'tokenizer/tokenizer.json'):
    (tmp_path / 'run' / name).parent.mkdir(exist_ok=True)
    (tmp_path / 'run' / name).write_bytes((trained / name).read_bytes())
  ended = call(capfd, 'generate', f'--model={tmp_path / "run"}', '--prompt=x')
  assert ended.code == 2 and 'has no checkpoint' in ended.err


def test_a_text_longer_than_the_model_reads(trained, capfd):
  ended = call(capfd, 'generate', f'--model={trained}', '--prompt=the', '--max_new_tokens=100')
  assert ended.code == 2 and 'exceed the context of 64' in ended.err


@pytest.mark.slow
def test_a_config_mended_before_training_began_is_taken(text, tmp_path, capfd):
  """A run that ended on bad input has nothing to lose: the same folder takes the mended config."""
  assert call(capfd, 'pretrain', *flags(text, tmp_path / 'run', '--config.model.residual=pst')).code == 2
  assert call(capfd, 'pretrain', *flags(text, tmp_path / 'run', '--config.num_steps=2')).code == 0


def test_training_starts_from_another_run(text, trained, tmp_path, capfd):
  """The first loss is what the earlier run ended on, and its tokenizer is kept, whatever the new text's characters."""
  other = tmp_path / 'other.txt'
  other.write_text(text.read_text().replace('z', 'y'))
  start = [f'--config.init_from={trained}', '--config.num_steps=2', '--config.optimizer.learning_rate=1e-9']
  ended = call(capfd, 'pretrain', *flags(other, tmp_path / 'run', *start))
  assert ended.code == 0, ended.err
  assert losses(tmp_path / 'run')[1] < 0.5
  assert (tmp_path / 'run/tokenizer/tokenizer.json').read_bytes() == (trained / 'tokenizer/tokenizer.json').read_bytes()


def test_training_starts_from_weights_of_other_hands(text, tmp_path, capfd):
  """Model and tokenizer are theirs, and then the run's own: it goes on, and is used, without them."""
  foreign = speaker.save(tmp_path / 'foreign')
  settings = ['--config=configs/pretrain/base.py', f'--config.data.source=file:{text}', f'--config.init_from={foreign}']
  sizes = ['--config.num_steps=6', '--config.batch_size=8', '--config.context=16', '--config.eval_rows=8']
  every = ['--config.checkpoint_every=3', '--config.log_every=1', '--config.eval_batch_size=8']
  flags = [*settings, *sizes, *every, '--config.model.dtype=bfloat16', '--config.optimizer.learning_rate=1e-3']
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  ended = call(capfd, 'pretrain', *flags, f'--workdir={whole}')
  assert ended.code == 0, ended.err
  shutil.copytree(whole, broken)
  trained = language.load(str(foreign), dtype='bfloat16')
  rows = Rows(tokenize(documents(f'file:{text}', 'validation'), trained.tokenizer), 16, drop_remainder=False)
  expected = reading.validation(trained.model, [rows], 8)(trained.params)['loss']
  first = next(line['validation_loss'] for line in lines(whole) if line['step'] == 0)
  assert first == pytest.approx(expected, rel=1e-3), 'the first parameters are not those of the weights'
  (broken / 'result.json').unlink()
  shutil.rmtree(broken / 'checkpoints' / '6')
  shutil.rmtree(foreign)
  again = call(capfd, 'pretrain', *flags, f'--workdir={broken}')
  assert again.code == 0 and 'after step 3' in again.out, again.err
  assert losses(broken) == losses(whole)
  mine = language.load(str(whole))
  assert mine.model.config == trained.model.config
  assert tokenizers.fingerprint(mine.tokenizer) == tokenizers.fingerprint(trained.tokenizer)


def test_weights_that_do_not_fit(text, trained, tmp_path, capfd):
  ended = call(
    capfd, 'pretrain', *flags(text, tmp_path / 'run', f'--config.init_from={trained}', '--config.model.num_layers=3')
  )
  assert ended.code == 2 and f'config.model.num_layers = 3 does not fit the weights of {trained}' in ended.err


def test_training_starts_from_what_is_no_run(text, tmp_path, capfd):
  ended = call(capfd, 'pretrain', *flags(text, tmp_path / 'run', f'--config.init_from={tmp_path}'))
  assert ended.code == 2 and f'{tmp_path} has no config.json: it is not the folder of a model' in ended.err


def test_a_foreign_folder_is_left_alone(text, tmp_path, capfd):
  (tmp_path / 'config.json').write_text('{"model_type": "gpt2"}')
  ended = call(capfd, 'pretrain', *flags(text, tmp_path))
  assert ended.code == 2 and 'is not a run' in ended.err
  assert (tmp_path / 'config.json').read_text() == '{"model_type": "gpt2"}'


def test_a_damaged_checkpoint_is_said(text, tmp_path, capfd):
  workdir = tmp_path / 'run'
  assert call(capfd, 'pretrain', *flags(text, workdir, '--config.num_steps=5')).code == 0
  (workdir / 'result.json').unlink()
  for path in (workdir / 'checkpoints' / '5').rglob('*'):
    if path.is_file() and path.stat().st_size > 100:
      path.write_bytes(path.read_bytes()[:50])
  ended = call(capfd, 'pretrain', *flags(text, workdir, '--config.num_steps=5'))
  assert ended.code == 2 and str(workdir / 'checkpoints' / '5') in ended.err, ended.err
