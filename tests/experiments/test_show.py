"""A batch as a person sees it: what is predicted is marked, token by token."""

import json
import pathlib

import pytest

from tests.experiments import speaker
from tests.experiments.program import call


def shown(capfd, experiment: str, *flags: str) -> list[str]:
  ended = call(capfd, 'show', f'--experiment={experiment}', f'--config=configs/{experiment}/tiny.py', *flags)
  assert ended.code == 0, ended.err
  return ended.out.splitlines()


def written(path: pathlib.Path, *records: dict) -> str:
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return f'--config.data.source=file:{path}'


def test_turns_of_the_assistant_are_marked(tmp_path, capfd):
  model = f'--config.init_from={speaker.save(tmp_path / "speaker")}'
  turns = [
    {'role': role, 'content': content}
    for role, content in (('user', 'the fox?'), ('assistant', 'lazy'), ('user', 'dog?'), ('assistant', 'quick'))
  ]
  source = written(tmp_path / 'turns.jsonl', {'messages': turns}, {'prompt': 'brown ', 'answer': 'fox'})
  flags = [source, model, '--config.data.held_out=0', '--config.context=128', '--config.batch_size=1']
  lines = shown(capfd, 'instruct', *flags)
  assert '--- row 0' in lines
  text = '\n'.join(lines[lines.index('--- row 0') + 1 :])
  assert text == (
    '<|im_start|>user\nthe fox?<|im_end|>\n<|im_start|>assistant\n[[lazy<|im_end|>]]\n'
    '<|im_start|>user\ndog?<|im_end|>\n<|im_start|>assistant\n[[quick<|im_end|>]]\n\n<s>brown [[fox<|endoftext|>]]'
  )


@pytest.mark.parametrize('experiment', ['reward', 'dpo'])
def test_responses_have_their_scores(experiment, base, tmp_path, capfd):
  record = {'prompt': 'the ', 'responses': ['fox', 'lazy dog'], 'scores': [1, 2.5]}
  source = written(tmp_path / 'ranked.jsonl', record)
  flags = [source, f'--config.init_from={base}', '--config.data.held_out=0', '--config.batch_size=1']
  lines = shown(capfd, experiment, *flags)
  after = lines[lines.index('--- row 0') + 1 :]
  assert sorted(after) == ['1: the [[fox]]', '2.5: the [[lazy dog]]']


def test_text_is_predicted_but_for_its_first_token(base, capfd):
  source = f'--config.data.source=file:{base.parent / "text.txt"}'
  lines = shown(capfd, 'pretrain', source, '--rows=2', '--step=3')
  assert lines[0].startswith('batch 3: tokens (8, 33), 256 of them') and lines.count('--- row 1') == 1
  (row,) = (lines[place + 1] for place, line in enumerate(lines) if line == '--- row 0')
  assert row[1:3] == '[[' and row.endswith(']]') and len(row) == 33 + 4
