"""Tabulates and plots any runs side by side: what differs in their configs, and what came out.

python -m experiments.compare DIR DIR... [--out=compare]
"""

from collections.abc import Sequence
import pathlib
from typing import Any

from absl import flags
import pandas as pd

from experiments import command
from gpt_jax.evaluation import figures, pages
from gpt_jax.training.fields import flat
from gpt_jax.training.logs import read_lines
from gpt_jax.training.workdir import read_json, write_whole
from gpt_jax.types import UserError

OUT = flags.DEFINE_string('out', 'compare', 'the folder of table.csv and curves.png')


def compare(folders: Sequence[pathlib.Path]) -> tuple[pd.DataFrame, figures.Curves]:
  """A row a run, with the fields of the configs that differ and the result; and curves, those of one config but for
  the seed together.

  Raises:
    UserError: a folder is not a run's.
  """
  configs = {}
  for folder in folders:
    if not (folder / 'config.json').exists():
      raise UserError(f'{folder} is not the folder of a run: it has no config.json')
    configs[folder] = flat(read_json(folder / 'config.json')['config'])
  names = dict.fromkeys(name for config in configs.values() for name in config)
  differing = [name for name in names if len({repr(config.get(name)) for config in configs.values()}) > 1]
  rows: list[dict[str, Any]] = []
  curves: dict[str, dict[Any, list[tuple[float, float]]]] = {}
  for folder, config in configs.items():
    changed = {name: config.get(name) for name in differing}
    path = folder / 'result.json'
    result = flat(read_json(path)) if path.exists() else {'step': _last_step(folder)}
    rows.append({'run': str(folder), **changed, 'finished': path.exists(), **result})
    points = [(float(line['tokens']), line['loss']) for line in read_lines(folder) if line.get('loss') is not None]
    setting = figures.label({name: value for name, value in changed.items() if name != 'seed'}) or 'all runs'
    if points:
      curves.setdefault(setting, {})[str(folder)] = points
  return pd.DataFrame(rows), curves


def _last_step(folder: pathlib.Path) -> int:
  return max((line['step'] for line in read_lines(folder)), default=0)


def main(arguments: Sequence[str]) -> None:
  if len(arguments) < 2:
    raise UserError('name the folders of the runs: python -m experiments.compare DIR DIR...')
  table, curves = compare([pathlib.Path(argument) for argument in arguments[1:]])
  out = pathlib.Path(OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  write_whole(out / 'table.csv', table.to_csv(index=False))
  if curves:
    figures.curves(curves).savefig(out / 'curves.png', dpi=110)
  print(pages.markdown(table.set_index('run').T.reset_index(names='')))
  print(f'{out} has table.csv{" and curves.png" if curves else ""}.')


if __name__ == '__main__':
  command.run(main, positional=True)
