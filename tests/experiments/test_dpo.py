"""Learning from preferences without a reward model, from the command line."""

import json
import pathlib
import shutil

import pytest

from tests.experiments.program import call
from tests.experiments.test_pretrain import lines, losses


@pytest.fixture(scope='module')
def preferred(tmp_path_factory) -> pathlib.Path:
  """After every prompt a fox is better than a dog."""
  path = tmp_path_factory.mktemp('preferred') / 'preferred.jsonl'
  records = [{'prompt': f'the {word} ', 'chosen': 'fox', 'rejected': 'dog'} for word in ('lazy', 'brown', 'quick') * 40]
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return path


def flags(base: pathlib.Path, preferred: pathlib.Path, workdir: pathlib.Path, *others: str) -> list[str]:
  source = f'--config.data.source=file:{preferred}'
  return ['--config=configs/dpo/tiny.py', f'--config.init_from={base}', source, f'--workdir={workdir}', *others]


@pytest.mark.parametrize(('form', 'beta'), [('sigmoid', 0.1), ('ipo', 0.03)])
def test_it_says_what_is_preferred(form, beta, base, preferred, tmp_path, capfd):
  workdir = tmp_path / 'run'
  how = [f'--config.loss.form={form}', f'--config.loss.beta={beta}', '--config.epochs=4']
  ended = call(capfd, 'dpo', *flags(base, preferred, workdir, *how))
  assert ended.code == 0, ended.err
  first = next(line for line in lines(workdir) if line['step'] == 0)
  result = json.loads((workdir / 'result.json').read_text())
  assert first['validation_margin'] == pytest.approx(0, abs=1e-4)
  assert result['validation_margin'] > 0.4 and result['validation_accuracy'] == 1
  said = call(capfd, 'generate', f'--model={workdir}', '--prompt=the lazy ', '--temperature=0', '--max_new_tokens=3')
  assert said.code == 0 and said.out.strip() != 'the lazy dog'
  before = call(capfd, 'generate', f'--model={base}', '--prompt=the lazy ', '--temperature=0', '--max_new_tokens=3')
  assert before.out.strip() == 'the lazy dog'


def test_broken_off_it_goes_on(base, preferred, tmp_path, capfd):
  assert call(capfd, 'dpo', *flags(base, preferred, tmp_path / 'whole')).code == 0
  broken = flags(base, preferred, tmp_path / 'broken')
  shutil.copytree(tmp_path / 'whole', tmp_path / 'broken')
  steps = sorted(int(path.name) for path in (tmp_path / 'broken/checkpoints').iterdir() if path.name.isdigit())
  for name in ('result.json', f'checkpoints/{steps[-1]}'):
    (tmp_path / 'broken' / name).rename(tmp_path / pathlib.Path(name).name)
  again = call(capfd, 'dpo', *broken)
  assert again.code == 0 and f'after step {steps[-2]}' in again.out
  assert losses(tmp_path / 'broken') == losses(tmp_path / 'whole')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (['--config.init_from='], 'config.init_from is missing'),
    (['--config.loss.form=dpo'], "config.loss.form = 'dpo'"),
    (['--config.loss.beta=0'], 'config.loss: beta must be above 0'),
    (['--config.loss.label_smoothing=0.5'], 'label_smoothing from 0 up to 0.5'),
    (['--config.context=100'], 'config.context = 100 exceeds the 64 learned positions'),
  ],
)
def test_bad_configs_end_in_one_line(changes, message, base, preferred, tmp_path, capfd):
  ended = call(capfd, 'dpo', *flags(base, preferred, tmp_path / 'run', *changes))
  assert ended.code == 2 and message in ended.err and len(ended.err.splitlines()) == 1, ended.err
  assert not (tmp_path / 'run').exists()
