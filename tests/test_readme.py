"""What the README says to type works: every command and every block of Python, at the smallest size."""

import contextlib
import functools
import io
import pathlib
import re
import shlex
import subprocess

import pytest

from tests.experiments import speaker
from tests.experiments.program import ROOT, TINY, call, spawn
from tests.experiments.small_sweep import written

README = (pathlib.Path(__file__).parents[1] / 'README.md').read_text()
SMALL = [
  '--config.num_steps=2',
  '--config.batch_size=8',
  '--config.eval_batch_size=8',
  '--config.sample.max_new_tokens=5',
]
TEXT = ['--config.data.source=file:LICENSE', '--config.data.held_out=0.05']
MORE = {'pretrain': SMALL + TEXT, 'generate': ['--max_new_tokens=20'], 'chat': ['--max_new_tokens=20']}


def blocks(language: str) -> list[str]:
  return re.findall(rf'^```{language}\n(.*?)^```', README, re.DOTALL | re.MULTILINE)


def commands() -> list[tuple[str, str]]:
  """Each command, and what the README shows after it."""
  parts = [part for block in blocks('console') for part in re.split(r'^\$ ', block, flags=re.MULTILINE) if part]
  return [(part.split('\n', 1)[0], part.split('\n', 1)[1]) for part in parts]


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> pathlib.Path:
  workdir = tmp_path_factory.mktemp('readme') / 'run'
  flags = [f'--workdir={workdir}', '--config.context=64', '--config.model.num_kv_heads=4']  # GPT-2 can say it
  assert spawn('pretrain', f'--config={TINY}', *TEXT, *flags).code == 0
  return workdir


@pytest.fixture(scope='module')
def other(tmp_path_factory) -> pathlib.Path:
  """In place of models that are fetched."""
  return speaker.save(tmp_path_factory.mktemp('readme') / 'speaker')


@pytest.fixture(scope='module')
def heads(trained, tmp_path_factory) -> pathlib.Path:
  workdir = tmp_path_factory.mktemp('readme') / 'heads'
  assert spawn('medusa', *heads_of(trained), f'--workdir={workdir}').code == 0
  return workdir


def heads_of(base: pathlib.Path) -> list[str]:
  fields = {'base': base, 'data.source': 'file:LICENSE', 'data.held_out': 0.2, 'num_steps': 2}
  return ['--config=configs/medusa/tiny.py', *(f'--config.{name}={value}' for name, value in fields.items())]


def test_there_are_commands():
  assert len(commands()) > 5 and blocks('python')


@pytest.mark.parametrize(('command', 'shown'), commands())
def test_command(command, shown, trained, other, heads, tmp_path, capfd):
  words = shlex.split(command)
  if words[0] == 'make':
    assert subprocess.run(['make', '-n', *words[1:]], cwd=ROOT, capture_output=True, check=False).returncode == 0
    return
  assert words[:2] == ['python', '-m']
  name = words[2].removeprefix('experiments.')
  sweep = written(tmp_path, **{'seeds(2)': 'seeds(1)', "'num_steps': 30": "'num_steps': 2"})
  (tmp_path / 'prompts.jsonl').write_text('{"prompt": "License"}\n')
  here = {
    r'^(--(?:workdir|again|out|target)=)runs': rf'\g<1>{tmp_path}',
    r'^(--(?:model|source)=|)runs/\w+$': rf'\g<1>{trained}',
    r'=(asset:smollm2|hf://\S+)$': f'={other}',
    r'^(--(?:prompts|out)=)(\w+\.jsonl)$': rf'\g<1>{tmp_path}/\g<2>',
    r'^--medusa=runs/\w+$': f'--medusa={heads}',
    r'^--sweep=configs.*': f'--sweep={sweep}',
    r'^--source=file:.*': '--source=file:LICENSE',
    r'^--prompt=.*': '--prompt=License',
  }
  words = [functools.reduce(lambda text, swap: re.sub(*swap, text), here.items(), word) for word in words[3:]]
  if name == 'reward':
    rated = ''.join(f'{{"text": "{word}", "rating": {len(word)}}}\n' for word in ('a', 'in', 'the', 'with') * 20)
    (tmp_path / 'rated.jsonl').write_text(rated)
    words = [word for word in words if not word.startswith('--config=')]
    words += ['--config=configs/reward/tiny.py', f'--config.init_from={trained}', '--config.epochs=0.1']
    words += [f'--config.data.source=file:{tmp_path}/rated.jsonl']
  if name in ('instruct', 'show', 'policy'):
    (tmp_path / 'texts.jsonl').write_text('{"text": "License of the Work"}\n' * 20)
    kept = [word for word in words if not word.startswith('--config=')]
    config = 'instruct' if name == 'show' else name
    words = [
      *kept,
      f'--config=configs/{config}/tiny.py',
      f'--config.init_from={trained}',
      f'--config.data.source=file:{tmp_path}/texts.jsonl',
    ]
    words += (
      ['--config.epochs=1'] if config == 'instruct' else ['--config.reward.function=vader', '--config.num_rollouts=1']
    )
  if name == 'best_of':
    (tmp_path / 'texts.jsonl').write_text('{"text": "License of the Work"}\n' * 4)
    words = [word for word in words if not word.startswith(('--reward=', '--source=', '--n=', '--split='))]
    words += ['--function=vader', f'--source=file:{tmp_path}/texts.jsonl', '--n=2', '--max_new_tokens=8']
  if 'bilingual' in command:
    words.append('--config.data.weights=(1.0,)')
  if name == 'cloze':
    words = [f'--models={trained},{other}', '--source=file:LICENSE', '--split=train', '--size=40', '--texts=8']
  if name == 'judge':
    (tmp_path / 'texts.jsonl').write_text('{"text": "License of the Work"}\n' * 40)
    kept = [word for word in words if not word.startswith(('--models=', '--source='))]
    words = [f'--models={trained},{other}', f'--source=file:{tmp_path}/texts.jsonl', *kept, '--max_new_tokens=8']
  if name == 'medusa':
    words = [word for word in words if not word.startswith('--config=')] + heads_of(trained)
  run = spawn if name in ('sweep', 'compare') else functools.partial(call, capfd)
  ended = run(name, *words, *MORE.get(name, []), *([f'--results={tmp_path}'] if name == 'sweep' else []))
  if shown.startswith('error: '):
    assert ended.code == 2 and ended.err.strip() == shown.strip()
  else:
    assert ended.code == 0, ended.err


@pytest.mark.parametrize('block', blocks('python'))
def test_python(block, tmp_path, monkeypatch):
  """It prints what the comments behind its prints say."""
  monkeypatch.chdir(tmp_path)
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    exec(block, {})
  assert printed.getvalue().split() == re.findall(r'print\(.*  # (.*)', block)


def test_every_make_target_it_names_is_there():
  targets = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
  assert set(re.findall(r'make ([\w-]+)', README)) <= targets
