"""Teaching by demonstrations from the command line: what is shown is said, and what stays as it is stays so."""

import dataclasses
import itertools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from experiments import language, prompts
from experiments.rewards import of_model as rewards_of_model
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.rollouts import Writing
from gpt_jax.types import UserError
from tests.experiments import speaker
from tests.experiments.program import call
from tests.experiments.test_pretrain import lines, losses

ANSWERS = {'fox': 'lazy dog', 'dog': 'brown fox', 'over': 'the the the', 'jumps': 'quick'}


@pytest.fixture(scope='module')
def shown(tmp_path_factory) -> pathlib.Path:
  """Prompts of four kinds, each with its own answer."""
  path = tmp_path_factory.mktemp('shown') / 'shown.jsonl'
  records = [{'prompt': f'{word}; ', 'answer': answer} for word, answer in ANSWERS.items()] * 20
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return path


def flags(base: pathlib.Path, shown: pathlib.Path, workdir: pathlib.Path, *others: str) -> list[str]:
  source = f'--config.data.source=file:{shown}'
  return ['--config=configs/instruct/tiny.py', f'--config.init_from={base}', source, f'--workdir={workdir}', *others]


def test_it_answers_as_it_was_shown(base, shown, tmp_path, capfd):
  workdir = tmp_path / 'run'
  ended = call(capfd, 'instruct', *flags(base, shown, workdir, '--config.epochs=40'))
  assert ended.code == 0, ended.err
  assert 'train: 72 demonstrations in ' in ended.out and '0 are cut, 0 dropped' in ended.out
  first = next(line for line in lines(workdir) if line['step'] == 0)
  result = json.loads((workdir / 'result.json').read_text())
  assert result['validation_loss'] < 0.1 and first['validation_loss'] > 1
  for word, answer in ANSWERS.items():
    said = call(
      capfd,
      'generate',
      f'--model={workdir}',
      f'--prompt={word}; ',
      '--temperature=0',
      f'--max_new_tokens={len(answer)}',
    )
    assert said.code == 0 and said.out.strip() == f'{word}; {answer}', said


def test_lora_alone_learns_and_is_merged_when_read(base, shown, tmp_path, capfd):
  workdir = tmp_path / 'run'
  lora = [
    '--config.lora=lora(rank=4, alpha=8, targets="query|value")',
    '--config.epochs=8',
    '--config.data.packed=False',
  ]
  ended = call(capfd, 'instruct', *flags(base, shown, workdir, *lora))
  assert ended.code == 0, ended.err
  found = [line['validation_loss'] for line in lines(workdir) if 'validation_loss' in line]
  assert found[-1] < found[0] - 0.5
  before, after = (language.load(str(name)).params['params'] for name in (base, workdir))
  changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
  names = [jax.tree_util.keystr(path) for path, flag in jax.tree_util.tree_leaves_with_path(changed) if flag]
  assert len(names) == 2 and "['query']['kernel']" in names[0] and "['value']['kernel']" in names[1]


@pytest.mark.slow
def test_the_best_checkpoint_is_read_where_it_is_asked_for(base, tmp_path, capfd):
  """Held-out answers begin as those of training do and end otherwise: to know the others well is to miss them."""
  path = tmp_path / 'shown.jsonl'
  answers = ['brown dog'] * 72 + ['brown fox'] * 8
  path.write_text(''.join(json.dumps({'prompt': 'the ', 'answer': answer}) + '\n' for answer in answers))
  how = ['--config.checkpoint=best', '--config.epochs=8', '--config.keep_checkpoints=1', '--config.eval_every=1']
  assert call(capfd, 'instruct', *flags(base, path, tmp_path / 'run', *how)).code == 0
  result = json.loads((tmp_path / 'run/result.json').read_text())
  assert result['best_step'] < result['step'] and result['best_validation_loss'] < result['validation_loss']
  found = language.weights(str(tmp_path / 'run'))
  assert found.step == result['best_step']
  read = found.read(found.config)
  last = dataclasses.replace(found, step=None).read(found.config)
  assert not jax.tree.all(jax.tree.map(np.array_equal, read, last))


def test_the_checkpoint_whose_answers_a_reward_model_likes_best(base, tmp_path, capfd):
  """Demonstrations of which half have foxes, and rankings of how many a text has."""
  rated = tmp_path / 'rated.jsonl'
  texts = [' '.join(words) for words in itertools.product(('the', 'fox'), ('lazy', 'fox'), ('dog;', 'fox'))] * 20
  rated.write_text(''.join(json.dumps({'text': text, 'rating': text.count('fox')}) + '\n' for text in texts))
  likes = tmp_path / 'likes'
  how = ['--config=configs/reward/tiny.py', f'--config.init_from={base}', f'--config.data.source=file:{rated}']
  assert call(capfd, 'reward', *how, f'--workdir={likes}').code == 0
  shown = tmp_path / 'shown.jsonl'
  shown.write_text('{"prompt": "the ", "answer": "fox fox"}\n{"prompt": "the ", "answer": "dog dog"}\n' * 30)
  how = ['--config.checkpoint=reward', f'--config.reward.model={likes}', '--config.epochs=6', '--config.eval_every=1']
  how += ['--config.keep_checkpoints=1', '--config.reward.max_new_tokens=12']
  ended = call(capfd, 'instruct', *flags(base, shown, tmp_path / 'run', *how))
  assert ended.code == 0, ended.err
  rewards = {line['step']: line['held_out_reward'] for line in lines(tmp_path / 'run') if 'held_out_reward' in line}
  result = json.loads((tmp_path / 'run/result.json').read_text())
  best = max(rewards, key=rewards.get)
  assert 0 < best < result['step']
  assert result['best_step'] == best and result['best_held_out_reward'] == rewards[best]
  found = language.weights(str(tmp_path / 'run'))
  assert found.step == best
  trained = language.load(str(tmp_path / 'run'))
  model = rewards_of_model(str(likes), trained.tokenizer, 20, 8)
  prompt = trained.tokenizer.encode('the ').tolist()
  writing = Writing(12, Sampling(1.0), stop_ids=prompts.ends(trained.tokenizer))
  said = writing(trained.model, trained.params, [prompt] * 6, seed=1)
  assert float(np.mean(model(said))) == pytest.approx(rewards[best], abs=1e-4)
  (tmp_path / 'run/result.json').write_text(json.dumps({**result, 'best_step': 0}))
  with pytest.raises(UserError, match='was best before training'):
    language.weights(str(tmp_path / 'run'))


def test_broken_off_it_goes_on_with_text_mixed_in(base, shown, tmp_path, capfd):
  text = f'--config.pretraining.source=file:{base.parent / "text.txt"}'
  how = [text, '--config.pretraining.share=0.25', '--config.epochs=3']
  assert call(capfd, 'instruct', *flags(base, shown, tmp_path / 'whole', *how)).code == 0
  broken = flags(base, shown, tmp_path / 'broken', *how)
  shutil.copytree(tmp_path / 'whole', tmp_path / 'broken')
  steps = sorted(int(path.name) for path in (tmp_path / 'broken/checkpoints').iterdir() if path.name.isdigit())
  for name in ('result.json', f'checkpoints/{steps[-1]}'):
    (tmp_path / 'broken' / name).rename(tmp_path / pathlib.Path(name).name)
  again = call(capfd, 'instruct', *broken)
  assert again.code == 0 and f'after step {steps[-2]}' in again.out
  assert losses(tmp_path / 'broken') == losses(tmp_path / 'whole')


def test_conversations_of_a_model_that_begins_its_texts(tmp_path, capfd):
  other = speaker.save(tmp_path / 'speaker')
  path = tmp_path / 'turns.jsonl'
  turns = [{'role': 'user', 'content': 'the fox?'}, {'role': 'assistant', 'content': 'lazy dog'}]
  path.write_text(''.join(json.dumps({'messages': turns}) + '\n' for _ in range(40)))
  how = ['--config.epochs=30', '--config.context=64', '--config.optimizer.learning_rate=1e-2']
  ended = call(capfd, 'instruct', *flags(other, path, tmp_path / 'run', *how))
  assert ended.code == 0, ended.err
  said = call(capfd, 'generate', f'--model={tmp_path / "run"}', '--chat', '--prompt=the fox?', '--temperature=0')
  assert said.out.strip() == 'lazy dog', 'it ends its turn by itself'
  assert language.weights(str(tmp_path / 'run')).begin == language.weights(str(other)).begin != ()
  record = '{"prompt": "the fox?", "answer": "lazy dog"}\n'
  path.write_text(record * 40)
  as_chat = flags(other, path, tmp_path / 'again', *how, '--config.data.chat=True')
  assert call(capfd, 'instruct', *as_chat).code == 0
  assert losses(tmp_path / 'again') == losses(tmp_path / 'run')


def test_templates_in_turn_and_caps(base, shown, tmp_path, capfd):
  how = ["--config.data.templates=('q; {};', 'the {} is')", '--config.data.cap=5', '--config.epochs=1']
  ended = call(capfd, 'instruct', *flags(base, shown, tmp_path / 'run', *how, '--config.data.packed=False'))
  assert ended.code == 0 and 'train: 5 demonstrations in 5 rows' in ended.out, ended


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (['--config.init_from='], 'config.init_from is missing'),
    (['--config.data.source='], 'config.data.source is empty'),
    (['--config.context=0'], 'config.context = 0 must be at least 1'),
    (['--config.context=100'], 'config.context = 100 exceeds the 64 learned positions'),
    (['--config.checkpoint=first'], "config.checkpoint = 'first'"),
    (['--config.checkpoint=reward'], 'needs config.reward.model'),
    (['--config.checkpoint=reward', '--config.reward.model=/no/such'], '/no/such has no reward.json'),
    (['--config.checkpoint=reward', '--config.reward.prompts=0'], 'config.reward.prompts = 0 must be at least 1'),
    (['--config.epochs=0'], 'config.epochs = 0.0 must be above 0'),
    (['--config.lora=lora(rank=0)'], 'rank = 0'),
    (['--config.lora=loro(rank=4)'], "did you mean 'lora'"),
    (['--config.pretraining.share=0.5'], 'config.pretraining.source is missing'),
    (['--config.pretraining.share=1.0'], 'config.pretraining.share = 1.0 must be from 0 up to 1'),
    (["--config.data.templates=('Question',)"], "config.data.templates: 'Question' must have {} once"),
    (['--config.data.chat=True'], 'no chat template'),
  ],
)
def test_bad_configs_end_in_one_line(changes, message, base, shown, tmp_path, capfd):
  ended = call(capfd, 'instruct', *flags(base, shown, tmp_path / 'run', *changes))
  assert ended.code == 2 and message in ended.err and len(ended.err.splitlines()) == 1, ended.err
  assert not (tmp_path / 'run').exists()
