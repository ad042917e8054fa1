"""Runs the whole road, from text to an aligned model, and writes one page of it.

python -m experiments.align --road=configs/align/positive.py --workdir=DIR

Run again, it goes on where it stopped. The page is DIR/README.md and DIR/index.html.
"""

from collections.abc import Mapping, Sequence
import pathlib
import subprocess
import sys
import time
from typing import Any

from absl import flags
import pandas as pd

from experiments import command, language, prompts, rewards, samples, sweep_file
from gpt_jax.evaluation import pages
from gpt_jax.training.workdir import read_json, write_json, write_whole
from gpt_jax.types import UserError

ROAD = flags.DEFINE_string('road', None, 'a file of configs/align')
WORKDIR = flags.DEFINE_string('workdir', None, 'the folder of the road: one of each stage, and the page')

TEACHES = {
  'pretrain': 'learns to write from text as it comes',
  'instruct': 'learns from demonstrations, of which answers alone are predicted',
  'reward': 'learns what people prefer, from how they rated texts',
  'policy': 'learns from rewards for what it writes itself (PPO)',
}
"""What each stage is for; a road is made of some of them."""


def stages(road: Mapping[str, Any], workdir: pathlib.Path) -> dict[str, list[str]]:
  """The command of each stage by its name.

  Raises:
    UserError: a stage that is no experiment here, or a field that names a stage which does not come before.
  """
  commands: dict[str, list[str]] = {}
  for name, stage in road['stages'].items():
    if name not in TEACHES:
      raise UserError(f'{ROAD.value}: stage {name!r} is none of {", ".join(TEACHES)}')
    folders = {earlier: str(workdir / earlier) for earlier in commands}
    try:
      fields = {field: str(value).format(**folders) for field, value in stage['fields'].items()}
    except KeyError as error:
      raise UserError(f'{ROAD.value}: stage {name} names {error}, which does not come before it') from None
    overrides = [f'--config.{field}={value}' for field, value in fields.items()]
    line = [sys.executable, '-m', f'experiments.{name}', f'--config={stage["config"]}', *overrides]
    commands[name] = [*line, f'--workdir={workdir / name}']
  return commands


def run(commands: Mapping[str, Sequence[str]], workdir: pathlib.Path) -> None:
  """Runs the stages one after the other, each in a process of its own; what each took goes to times.json.

  A stage that is finished says so itself, or that its config is another now.
  """
  path = workdir / 'times.json'
  seconds = read_json(path) if path.exists() else {}
  for name, line in commands.items():
    finished = (workdir / name / 'result.json').exists()
    print(f'\n=== {name}: {TEACHES[name]}\n', flush=True)
    began = time.perf_counter()
    process = subprocess.Popen(line)
    try:
      code = process.wait()
    except KeyboardInterrupt:
      code = process.wait()  # it was interrupted too, and saves
    if code:
      raise SystemExit(code)
    if not finished:
      seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
      write_json(path, seconds)


def compared(road: Mapping[str, Any], workdir: pathlib.Path) -> tuple[pd.DataFrame, pd.DataFrame]:
  """What the models of the stages write after the same held-out prompts: figures, and texts beside each other."""
  config = read_json(workdir / 'policy' / 'config.json')['config']
  found, evaluation = language.weights(str(workdir / 'policy')), config['evaluation']
  asked = prompts.some(prompts.of_split(config['data'], found, 'validation'), road['judged_prompts'])
  table, texts = samples.compared(
    {name: str(workdir / name) for name in road['compared']},
    [(rewards.text(found.tokenizer, ids), record) for ids, record in asked],
    lambda tokenizer: prompts.writing({**config['rollout'], 'num_samples': 1}, tokenizer),
    evaluation['judge'],
    evaluation['positive_above'],
    seed=1,
  )
  return table, texts[: road['shown_prompts']]


def page(road: Mapping[str, Any], workdir: pathlib.Path) -> None:
  """Writes README.md and index.html of a finished road."""
  table, texts = compared(road, workdir)
  seconds = read_json(workdir / 'times.json')
  plain = texts.map(lambda text: ' '.join(text.split()).replace('|', '\\|').replace('<', '&lt;').replace('*', '\\*'))
  parts = [
    f'# {road["title"]}',
    f'{len(road["stages"])} stages in {sum(seconds.values()) / 60:.0f} minutes. What was written after the first '
    f'tokens of {road["judged_prompts"]} held-out texts, judged by what none of the models learned from:',
    pages.markdown(table),
    '## The same beginnings, gone on with',
    plain.to_markdown(index=False),
  ]
  for name in road['stages']:
    result = read_json(workdir / name / 'result.json')
    shown = {key: value for key, value in result.items() if isinstance(value, float) and key.startswith(KEPT)}
    plots = sorted(path.name for path in (workdir / name / 'plots').glob('*.png') if path.stem in PLOTS)
    parts += [f'## {name}', f'{TEACHES[name].capitalize()}; {seconds.get(name, 0.0) / 60:.1f} minutes.']
    parts += [pages.markdown(pd.DataFrame([shown]).T.reset_index(names='').rename(columns={0: 'value'}))]
    parts += [f'![{name}, {plot}]({name}/plots/{plot})' for plot in plots]
  text = '\n\n'.join(parts) + '\n'
  write_whole(workdir / 'README.md', text)
  write_whole(workdir / 'index.html', html(road['title'], text))


KEPT = ('validation_', 'held_out_', 'pretraining_loss')
"""Beginnings of what is shown of a result."""

PLOTS = ('loss', 'calibration', 'metrics')


def html(title: str, text: str) -> str:
  """A page of Markdown for a browser."""
  try:
    import markdown
  except ImportError as error:
    raise UserError("the page needs a library: pip install 'gpt_jax[align]'") from error
  style = (
    'body{max-width:70em;margin:2em auto;font-family:sans-serif} img{max-width:60%}'
    'td,th{padding:.2em .6em;text-align:left;vertical-align:top}'
  )
  body = markdown.markdown(text, extensions=['tables'])
  return f'<!doctype html><meta charset="utf-8"><title>{title}</title><style>{style}</style>\n{body}\n'


def main(_: Any) -> None:
  workdir = pathlib.Path(command.required(WORKDIR))
  road = sweep_file.called(command.required(ROAD), 'get_road')
  commands = stages(road, workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  run(commands, workdir)
  page(road, workdir)
  print(f'Done: {workdir}/index.html shows every stage beside the others.')


if __name__ == '__main__':
  command.run(main)
