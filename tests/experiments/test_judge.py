"""Models of different vocabularies go on with the same texts, and the judge sees what each wrote and nothing else."""

import json

import numpy as np
import pytest

from experiments import rewards
from tests.experiments import speaker
from tests.experiments.program import call
from tests.experiments.test_policy import asked  # noqa: F401  a fixture


def test_each_is_judged_by_what_it_wrote(base, asked, tmp_path, monkeypatch, capfd):  # noqa: F811
  seen = []

  def letters(record, prompt, response):
    seen.append((record['text'] if 'text' in record else record['prompt'], prompt, response))
    return response.count('o')

  monkeypatch.setitem(rewards.FUNCTIONS, 'letters', lambda: letters)
  other, out = speaker.save(tmp_path / 'speaker'), tmp_path / 'texts.jsonl'
  flags = [f'--models={base},{other}', f'--source=file:{asked}', '--beginnings=5', '--judge=letters', f'--out={out}']
  ended = call(capfd, 'judge', *flags, '--prompts=12', '--max_new_tokens=8', '--positive_above=1', '--prefix=the fox; ')
  assert ended.code == 0, ended.err
  lines = [json.loads(line) for line in out.read_text().splitlines()]
  rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in ended.out.splitlines() if '|' in line]
  assert len(lines) == 5 and [row[0] for row in rows[2:]] == [str(base), str(other)]
  for row, name in zip(rows[2:], (str(base), str(other)), strict=True):
    counts = [line[name].count('o') for line in lines]
    table = dict(zip(rows[0], row, strict=True))
    assert float(table['judge']) == pytest.approx(np.mean(counts), abs=1e-3)
    assert float(table['positive_share']) == pytest.approx(np.mean(np.array(counts) > 1), abs=1e-3)
  for whole, prompt, _ in seen:
    assert prompt.endswith(whole[:5]) and 'the fox; ' in prompt
  assert {line['prompt'] for line in lines} <= {whole[:5] for whole, _, _ in seen}
  assert [response for _, _, response in seen] == [line[name] for name in (str(base), str(other)) for line in lines]


def test_bad_flags_end_in_one_line(base, asked, capfd):  # noqa: F811
  flags = [f'--models={base}', f'--source=file:{asked}']
  for more, message in (
    (['--judge=letter'], "judge = 'letter'"),
    (['--temperature=0'], '--temperature=0.0 must be above 0'),
    (['--max_new_tokens=60'], 'a prompt and max_new_tokens = 66 exceeds the 64 learned positions'),
    (['--models=/no/such'], '/no/such'),
  ):
    ended = call(capfd, 'judge', *flags, *more)
    assert ended.code == 2 and message in ended.err and len(ended.err.splitlines()) == 1, ended
