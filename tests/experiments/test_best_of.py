"""The best of n responses is the best of them, and can be learned from."""

import json

import numpy as np
import pytest

from experiments import rewards
from tests.experiments.program import call
from tests.experiments.test_policy import asked  # noqa: F401  a fixture


@pytest.fixture
def letters(monkeypatch):
  monkeypatch.setitem(rewards.FUNCTIONS, 'letters', lambda: lambda record, prompt, response: response.count('o'))


def test_the_best_is_kept_and_learned_from(base, asked, letters, tmp_path, capfd):  # noqa: F811
  out = tmp_path / 'best.jsonl'
  flags = [f'--model={base}', '--function=letters', f'--source=file:{asked}', '--beginnings=6', f'--out={out}']
  how = ['--n=6', '--max_new_tokens=8', '--temperature=2.0', '--limit=10', '--batch_size=4']
  ended = call(capfd, 'best_of', *flags, *how)
  assert ended.code == 0, ended.err
  lines = [json.loads(line) for line in out.read_text().splitlines()]
  assert len(lines) == 10 and all(line['answer'].count('o') == line['reward'] >= line['first_reward'] for line in lines)
  table = [line.split() for line in ended.out.splitlines() if line.strip()[:1].isdigit()]
  assert [row[0] for row in table] == ['1', '2', '4', '6']
  means = [float(row[1]) for row in table]
  assert means == sorted(means) and means[-1] > means[0]
  assert means[0] == pytest.approx(np.mean([line['first_reward'] for line in lines]), abs=1e-3)
  assert means[-1] == pytest.approx(np.mean([line['reward'] for line in lines]), abs=1e-3)
  assert float(table[-1][2]) == pytest.approx(np.log(6) - 5 / 6, abs=1e-3)
  learn = ['--config=configs/instruct/tiny.py', f'--config.init_from={base}', f'--config.data.source=file:{out}']
  assert call(capfd, 'instruct', *learn, f'--workdir={tmp_path / "run"}', '--config.epochs=1').code == 0


def test_bad_flags_end_in_one_line(base, asked, tmp_path, capfd):  # noqa: F811
  flags = [f'--model={base}', f'--source=file:{asked}', f'--out={tmp_path / "best.jsonl"}', '--beginnings=6']
  for more, message in (
    ([], 'give either --reward or --function'),
    (['--function=letter'], "--function = 'letter'"),
    (['--function=vader', '--temperature=0'], '--temperature=0.0 must be above 0'),
    (
      ['--function=vader', '--max_new_tokens=60'],
      'a prompt and --max_new_tokens = 66 exceeds the 64 learned positions',
    ),
  ):
    ended = call(capfd, 'best_of', *flags, *more)
    assert ended.code == 2 and message in ended.err and len(ended.err.splitlines()) == 1, ended
  assert not (tmp_path / 'best.jsonl').exists()
