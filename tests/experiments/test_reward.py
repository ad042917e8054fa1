"""A reward model from the command line: it learns what people prefer, and says how sure to be of it."""

import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import language
from experiments.heads import load_reward
from gpt_jax.data.formats import rankings
from gpt_jax.data.ranked import Ranked
from gpt_jax.data.sources import records
from gpt_jax.objectives.preference import rewards_of
from gpt_jax.types import UserError
from tests.experiments.program import call
from tests.experiments.test_pretrain import lines, losses

WORDS = ('the', 'quick', 'brown', 'fox', 'jumps', 'over', 'the', 'lazy', 'dog;')


@pytest.fixture(scope='module')
def rated(tmp_path_factory) -> pathlib.Path:
  """Texts that are rated by how many foxes are in them."""
  rng = np.random.default_rng(0)
  path = tmp_path_factory.mktemp('rated') / 'rated.jsonl'
  with path.open('w') as file:
    for _ in range(600):
      words = rng.choice(WORDS, 5)
      file.write(json.dumps({'text': ' '.join(words), 'rating': int(sum(words == 'fox'))}) + '\n')
  return path


def flags(base: pathlib.Path, rated: pathlib.Path, workdir: pathlib.Path, *others: str) -> list[str]:
  source = f'--config.data.source=file:{rated}'
  return ['--config=configs/reward/tiny.py', f'--config.init_from={base}', source, f'--workdir={workdir}', *others]


def test_it_learns_what_is_preferred(base, rated, tmp_path, capfd):
  workdir = tmp_path / 'run'
  ended = call(capfd, 'reward', *flags(base, rated, workdir))
  assert ended.code == 0, ended.err
  assert 'comparisons' in ended.out and 'texts are cut' in ended.out
  result = json.loads((workdir / 'result.json').read_text())
  first = next(line for line in lines(workdir) if line['step'] == 0)
  assert result['validation_accuracy'] > 0.95 and first['validation_accuracy'] < 0.75
  assert result['validation_loss'] < 0.35 and (workdir / 'plots/calibration.png').stat().st_size > 5000
  observed = np.array(result['calibration']['observed'])
  assert abs(np.sum(result['calibration']['share']) - 1) < 1e-5 and observed[-1] > 0.9 and observed[0] < 0.1
  model, params = load_reward(str(workdir))
  tokenizer = language.tokenizer_of(str(workdir))
  texts = ['the fox over fox lazy', 'the dog; over quick lazy', 'the fox over quick lazy']
  rewards = [float(model.apply(params, jnp.asarray(tokenizer.encode(text))[None])[0]) for text in texts]
  assert rewards[0] > rewards[2] > rewards[1]
  rows = Ranked(rankings(records(f'file:{rated}', 'validation')), tokenizer, 32)
  batch = rows.batch(np.arange(len(rows)))
  best = (batch['scores'] == batch['scores'].max(axis=1, keepdims=True)) & (batch['weights'] > 0)
  of_best = np.asarray(jax.jit(functools.partial(rewards_of, model))(params, batch, jax.random.key(0)))[best]
  assert abs(of_best.mean()) < 1e-3 < abs(result['offset']), 'the best of the rankings have reward 0 on average'
  no_model = call(capfd, 'generate', f'--model={workdir}', '--prompt=a')
  assert no_model.code == 2 and 'it is no language model' in no_model.err


def test_rewards_of_mean_0_and_deviation_1(base, rated, tmp_path, capfd):
  """Ziegler et al. 2019, section 2.1; by the rewards themselves, read one by one."""
  workdir = tmp_path / 'run'
  assert call(capfd, 'reward', *flags(base, rated, workdir, '--config.normalized=all')).code == 0
  model, params = load_reward(str(workdir))
  texts = [text for one in rankings(records(f'file:{rated}', 'validation')) for text in one.responses]
  ids = [language.tokenizer_of(str(workdir)).encode(text) for text in texts]
  found = np.array([float(model.apply(params, jnp.asarray(one)[None])[0]) for one in ids])
  assert abs(found.mean()) < 1e-3 and abs(found.std() - 1) < 1e-3
  result = json.loads((workdir / 'result.json').read_text())
  assert abs(result['gain'] - 1) > 0.05


def test_broken_off_it_goes_on_and_pairs_are_rows_of_their_own(base, rated, tmp_path, capfd):
  how = ['--config.data.limit=8', '--config.data.form=pairs', '--config.epochs=0.5']
  ended = call(capfd, 'reward', *flags(base, rated, tmp_path / 'whole', *how))
  broken = flags(base, rated, tmp_path / 'broken', *how)
  rankings, comparisons = (int(word) for word in ended.out.split('train: ')[1].split()[:3:2])
  assert ended.code == 0 and rankings == comparisons > 16
  shutil.copytree(tmp_path / 'whole', tmp_path / 'broken')
  last = max(int(path.name) for path in (tmp_path / 'broken/checkpoints').iterdir() if path.name.isdigit())
  for name in ('result.json', 'reward.json', f'checkpoints/{last}'):
    (tmp_path / 'broken' / name).rename(tmp_path / pathlib.Path(name).name)
  with pytest.raises(UserError, match='has no reward'):
    load_reward(str(tmp_path / 'broken'))
  again = call(capfd, 'reward', *broken)
  assert again.code == 0 and 'after step 5' in again.out, again
  assert losses(tmp_path / 'broken') == losses(tmp_path / 'whole')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (['--config.init_from='], 'config.init_from is missing'),
    (['--config.init_from=/no/such'], '/no/such'),
    (['--config.data.source='], 'config.data.source is empty'),
    (['--config.data.form=pair'], "did you mean 'pairs'?"),
    (['--config.normalized=every'], "config.normalized = 'every'"),
    (['--config.data.least=1'], 'a ranking takes 2 texts or more'),
    (['--config.context=0'], 'config.context = 0 must be at least 1'),
    (['--config.context=100'], 'config.context = 100 exceeds the 64 learned positions'),
    (['--config.epochs=0'], 'config.epochs = 0.0 must be above 0'),
    (['--config.model.dtype=float8'], "'float8' not understood"),
  ],
)
def test_bad_configs_end_in_one_line(changes, message, base, rated, tmp_path, capfd):
  ended = call(capfd, 'reward', *flags(base, rated, tmp_path / 'run', *changes))
  assert ended.code == 2 and message in ended.err and len(ended.err.splitlines()) == 1, ended.err
  assert not (tmp_path / 'run').exists()
