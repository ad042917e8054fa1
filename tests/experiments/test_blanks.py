"""A model that fills blanks, from text to table: pretrain, show, generate, evaluate and cloze."""

import json

import numpy as np
import pytest

from tests.experiments.program import TINY, call, spawn
from tests.experiments.test_pretrain import TEXT

GLM = (
  '--config.model.attention=dense(causal | prefix)', '--config.model.positions=learned_2d(65)', '--config.context=64',
  '--config.data.tokenizer=bpe:280', '--config.infilling.word=0.6', '--config.infilling.sentence=0.1',
  '--config.infilling.document=0.3', '--config.infilling.least_ratio=0.0', '--config.infilling.ratio=0.3',
)  # fmt: skip


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  path = tmp_path_factory.mktemp('text') / 'text.txt'
  path.write_text(TEXT * 100)
  return path


@pytest.fixture(scope='module')
def asked(text):
  """Instructions that stand among the text."""
  lines = [json.dumps({'prompt': f'What is {number}?', 'answer': f'{number}.'}) for number in range(20)]
  path = text.with_name('asked.jsonl')
  path.write_text('\n'.join(lines))
  return path


@pytest.fixture(scope='module')
def trained(text, asked):
  folder = text.with_name('run')
  ended = spawn(
    'pretrain', f'--config={TINY}', f'--config.data.source=file:{text}', f'--workdir={folder}', *GLM,
    '--config.num_steps=200', f'--config.infilling.instructions=file:{asked}',
  )  # fmt: skip
  assert ended.code == 0, ended.err
  assert 'instructions: 18 of file:' in ended.out
  return folder


def test_both_ways_to_read_are_measured(trained):
  result = json.loads((trained / 'result.json').read_text())
  assert result['blanks_loss'] < 1.5 and result['validation_loss'] < 3
  assert result['cloze_loss'] < 1.5 and 0.4 < result['cloze_accuracy'] <= 1
  assert 0 <= result['cloze_exact_match_with_end'] <= 1
  lines = [json.loads(line) for line in (trained / 'metrics.jsonl').read_text().splitlines()]
  assert lines[0]['blanks_loss'] > 5


def test_it_fills_blanks_and_writes_on(trained, tmp_path, capfd):
  words = TEXT.split()
  blank = ' '.join(words[:4]) + '[MASK] ' + ' '.join(words[6:12])
  greedy = (f'--model={trained}', '--temperature=0', '--max_new_tokens=12')
  ended = call(capfd, 'generate', *greedy, f'--prompt={blank}')
  assert ended.code == 0, ended.err
  assert ended.out.startswith(' '.join(words[:4])) and ended.out.strip().endswith(' '.join(words[6:12]))
  assert '[MASK]' not in ended.out and '<|endofpiece|>' not in ended.out
  prompts = tmp_path / 'prompts.jsonl'
  prompts.write_text('\n'.join(json.dumps({'prompt': prompt}) for prompt in (blank, ' '.join(words[:6]))))
  ended = call(capfd, 'generate', *greedy, f'--prompts={prompts}', f'--out={tmp_path / "out.jsonl"}')
  assert ended.code == 0, ended.err
  first, second = map(json.loads, (tmp_path / 'out.jsonl').read_text().splitlines())
  assert len(first['blanks']) == len(second['blanks']) == 1
  assert second['completion'] == ' '.join(words[:6]) + second['blanks'][0]
  ended = call(capfd, 'generate', *greedy, f'--prompt={blank}', '--num_beams=2')
  assert ended.code == 2 and '--num_beams does not go with a model that fills blanks' in ended.err


def test_it_is_evaluated_as_it_writes_from_left_to_right(trained, capfd):
  ended = call(capfd, 'evaluate', f'--model={trained}')
  assert ended.code == 0, ended.err
  result = json.loads((trained / 'result.json').read_text())
  np.testing.assert_allclose(json.loads(ended.out)['loss'], result['validation_loss'], rtol=1e-5)


def test_a_batch_is_shown_with_its_blanks(text, capfd):
  ended = call(capfd, 'show', '--experiment=pretrain', f'--config={TINY}', f'--config.data.source=file:{text}', *GLM)
  assert ended.code == 0, ended.err
  assert '[MASK]' in ended.out and '<|startofpiece|>[[' in ended.out and '<|endofpiece|>' in ended.out


def test_blanks_of_held_out_text_and_questions(trained, text, tmp_path, capfd):
  ended = call(
    capfd, 'cloze', f'--models={trained}', f'--source=file:{text}', '--size=40', '--texts=64', '--split=train'
  )
  assert ended.code == 0, ended.err
  row, left = json.loads(ended.out.splitlines()[-1])
  assert row['reads'] == 'both sides' and 10 < row['blanks'] <= 64
  assert row['loss'] < 1.5 and row['accuracy'] > 0.5, row
  assert left['reads'] == 'the left' and left['loss'] != row['loss'] and left['blanks'] == row['blanks']
  words = TEXT.split()
  question = {
    'prompt': f'{words[0]} {words[1]}[MASK] {words[3]} {words[4]}', 'options': [f' {words[2]}', ' zzz', ' 99'],
    'answer': f' {words[2]}',
  }  # fmt: skip
  path = tmp_path / 'questions.jsonl'
  path.write_text(json.dumps(question))
  ended = call(capfd, 'cloze', f'--models={trained}', f'--questions={path}')
  assert ended.code == 0 and '1.000' in ended.out, ended.err
  path.write_text('{"prompt": "a"}')
  ended = call(capfd, 'cloze', f'--models={trained}', f'--questions={path}')
  assert ended.code == 2 and 'line 1: expected "prompt", "options"' in ended.err


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (['--config.model.attention=dense'], 'config.model.attention reads one way'),
    (['--config.data.tokenizer=chars'], 'the tokenizer can not take the tokens [MASK]'),
    (['--config.data.separate_documents=True'], 'config.data.separate_documents does not go with config.infilling'),
    (['--config.infilling.ratio=0.7'], 'config.infilling.ratio = 0.7 must be above 0 and at most 0.5'),
  ],
)
def test_what_does_not_go_together_is_refused(text, tmp_path, changes, message, capfd):
  source = f'--config.data.source=file:{text}'
  ended = call(capfd, 'pretrain', f'--config={TINY}', source, f'--workdir={tmp_path / "run"}', *GLM, *changes)
  assert ended.code == 2 and message in ended.err
