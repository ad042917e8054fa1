"""Runs every point of a sweep, and writes one table and a page of what came out.

python -m experiments.sweep --sweep=configs/sweeps/NAME.py --workdir=DIR [--jobs=2] [--dry_run] [--index=I]

Run again, it skips what is finished and resumes what was cut.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import importlib.util
import os
import pathlib
import re
import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict
import pandas as pd

from experiments import command, language, launchers
from experiments.launchers import CRASHED, DIVERGED, FINISHED, LAUNCHERS, MISSING, Task
from gpt_jax.evaluation import pages
from gpt_jax.evaluation.pages import Results
from gpt_jax.names import choose, nearest
from gpt_jax.training.fields import flat
from gpt_jax.training.hardware import peak_flops
from gpt_jax.training.workdir import prepare, read_json, write_whole
from gpt_jax.types import UserError

SWEEP = flags.DEFINE_string('sweep', None, 'a file of configs/sweeps')
WORKDIR = flags.DEFINE_string('workdir', None, 'the folder of the sweep: its points, its table')
JOBS = flags.DEFINE_integer('jobs', 1, 'points at a time', lower_bound=1)
LAUNCHER = flags.DEFINE_enum('launcher', 'local', list(LAUNCHERS), 'where points run')
INDEX = flags.DEFINE_integer('index', None, 'run this point alone, counted from 0: for the array of any scheduler')
FIRST_SEED = flags.DEFINE_integer('first_seed', 0, "added to every point's seed: the same sweep on other seeds")
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'print the points and about how long they take, and run nothing')
AGAIN = flags.DEFINE_string('again', None, 'the folder of the same sweep on other seeds, for a section of the page')
RESULTS = flags.DEFINE_string('results', 'docs/results', "the folder the page's folder is made in; '': no page")

STARTUP = 20
"""Seconds that a point takes besides training, about."""

EXPERIMENTS = {'pretrain': language}
"""What can run a point, and the module that checks its configs and knows what they cost."""

REQUIRED = ('claim', 'source', 'experiment', 'config', 'points', 'baseline', 'metrics', 'expect')
OPTIONAL = {'x': None, 'columns': None, 'fit': False, 'threads': 1}


@dataclasses.dataclass(frozen=True)
class Sweep:
  """A sweep file, read and found right."""

  name: str
  spec: Mapping[str, Any]
  points: Sequence[Mapping[str, Any]]
  configs: Sequence[dict[str, Any]]
  tasks: Sequence[Task]


def load(path: str, workdir: str, first_seed: int = 0) -> Sweep:
  """Reads a sweep and builds the config and the command of each of its points.

  Raises:
    UserError: what is wrong with the file, or with a point of it.
  """
  spec = {**OPTIONAL, **_called(path, 'get_sweep')}
  for name in (*REQUIRED, *spec):
    if name not in spec or name not in (*REQUIRED, *OPTIONAL):
      verb = 'has no' if name not in spec else 'has an unknown'
      raise UserError(f'{path} {verb} {name!r}; known: {", ".join((*REQUIRED, *OPTIONAL))}')
  experiment = choose(f'{path}: experiment', spec['experiment'], EXPERIMENTS)
  points = [{**point, 'seed': point.get('seed', 0) + first_seed} for point in spec['points']]
  if not points:
    raise UserError(f'{path} has no points')
  names = [_name(point) for point in points]
  twice = next((name for name in names if names.count(name) > 1), None)
  if twice:
    raise UserError(f'{path} has the point {twice} twice')
  configs, tasks = [], []
  for name, point in zip(names, points, strict=True):
    config = _called(spec['config'], 'get_config')
    _override(config, point, path)
    configs.append(config.to_dict())
    try:
      experiment.check(configs[-1])
    except UserError as error:
      raise UserError(f'{path}: point {name}: {error}') from None
    folder = str(pathlib.Path(workdir).absolute() / 'points' / name)
    overrides = [f'--config.{field}={value}' for field, value in point.items()]
    module = f'experiments.{spec["experiment"]}'
    line = (sys.executable, '-m', module, f'--config={spec["config"]}', *overrides, f'--workdir={folder}')
    tasks.append(Task(name, line, folder, spec['threads'], os.getcwd()))
  _check_comparisons(path, spec, points)
  return Sweep(pathlib.Path(path).stem, spec, points, configs, tasks)


def _fields(points: Sequence[Mapping[str, Any]]) -> list[str]:
  """What the points vary, seeds apart."""
  fields = dict.fromkeys(field for point in points for field in point if field != 'seed')
  return [field for field in fields if len({repr(point.get(field)) for point in points}) > 1]


def _check_comparisons(path: str, spec: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> None:
  """What is to be compared must be among the points: better known now than after the last of them."""
  settings = [{field: point[field] for field in _fields(points) if field in point} for point in points]
  has = lambda wanted: [setting for setting in settings if wanted.items() <= setting.items()]
  if not has(spec['baseline']):
    raise UserError(f'{path}: no point has the baseline {spec["baseline"]}')
  for expectation in spec['expect']:
    if expectation['is'] != 'straight':
      wanted = {**expectation.get('where', {}), **expectation['of']}
      for setting in has(wanted) or [wanted]:
        for side in (setting, {**setting, **expectation['than']}):
          if side not in settings:
            raise UserError(f'{path}: expect compares {side}, which is no point')


def _called(path: str, function: str) -> Any:
  """What a function of a Python file returns."""
  try:
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    assert spec is not None and spec.loader is not None, 'not a Python file'
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)()
  except Exception as error:  # the file is the user's: it may fail in any way
    raise UserError(f'{path}: {function}() can not be called: {" ".join(str(error).split())}') from error


def _override(config: ConfigDict, point: Mapping[str, Any], path: str) -> None:
  known = flat(config.to_dict())
  for field, value in point.items():
    if field not in known:
      raise UserError(f'{path}: a point sets {field!r}, which the config has not; {nearest(field, known)}')
    try:
      config.update_from_flattened_dict({field: value})
    except (TypeError, ValueError) as error:
      raise UserError(f'{path}: a point sets {field} = {value!r}: {" ".join(str(error).split())}') from None


def _name(point: Mapping[str, Any]) -> str:
  """A folder's name that says what the point changes."""
  parts = [f'{field.rpartition(".")[2]}={value}' for field, value in point.items()]
  return re.sub(r'[^\w.=,+-]+', '_', ','.join(parts)).strip('_')


def table(sweep: Sweep) -> tuple[pd.DataFrame, pd.DataFrame]:
  """A row a point, in the order of the points: its fields, its status and its result; and the times of the same points.

  Nothing of the first depends on the machine or on when a point ran; all of the second does.
  """
  rows, times = [], []
  for task, point in zip(sweep.tasks, sweep.points, strict=True):
    row = {'point': task.name, **point, 'status': task.status}
    result = read_json(task.path / 'result.json') if task.status == FINISHED else {}
    speed = {f'speed.{name}': value for name, value in result.pop('speed', {}).items()}
    rows.append({**row, **flat(result)})
    times.append({'point': task.name, **speed})
  return pd.DataFrame(rows), pd.DataFrame(times)


def write_table(sweep: Sweep, folder: pathlib.Path) -> pd.DataFrame:
  """Writes table.csv, table.jsonl and times.csv; returns both tables joined."""
  results, times = table(sweep)
  write_whole(folder / 'table.csv', results.to_csv(index=False))
  write_whole(folder / 'table.jsonl', results.to_json(orient='records', lines=True, double_precision=15))
  write_whole(folder / 'times.csv', times.to_csv(index=False))
  joined = results.merge(times, on='point')
  missing = [metric for metric in sweep.spec['metrics'] if metric not in joined]  # where no run finished
  return joined.assign(**dict.fromkeys(missing, float('nan')))


def estimate(sweep: Sweep, jobs: int) -> str:
  """About how long what is missing takes, by the speed of what is finished, or by a third of the machine's peak."""
  experiment = EXPERIMENTS[sweep.spec['experiment']]
  work = {task: experiment.flops(config) for task, config in zip(sweep.tasks, sweep.configs, strict=True)}
  missing = [task for task in sweep.tasks if task.status in (MISSING, CRASHED)]
  flops = sum(work[task] for task in missing)
  done = {task: seconds for task in sweep.tasks if (seconds := _seconds(task))}
  if done:
    rate, said = sum(work[task] for task in done) / sum(done.values()) * jobs, 'by the speed of what is finished'
  else:
    peak, source = peak_flops()
    share = min(1.0, jobs * sweep.spec['threads'] / (os.cpu_count() or 1)) if 'measured' in source else 1.0
    rate, said = peak * share / 3, f'at a third of {peak * share / 1e9:,.0f} GFLOP/s ({source})'
  minutes = (flops / rate + STARTUP * len(missing) / jobs) / 60
  return f'{len(missing)} of {len(work)} points to run: {flops:.2e} FLOPs, about {minutes:.0f} minutes {said}'


def _seconds(task: Task) -> float:
  return read_json(task.path / 'result.json')['speed'].get('seconds', 0.0) if task.status == FINISHED else 0.0


def run(sweep: Sweep, workdir: pathlib.Path, launcher: str, jobs: int) -> None:
  """Runs what is missing; says of every point how it ended."""
  prepared = [prepare(task.path, config) for task, config in zip(sweep.tasks, sweep.configs, strict=True)]
  missing = [task for task in sweep.tasks if task.status in (MISSING, CRASHED)]
  print(f'{sweep.name}: {len(prepared)} points, {len(prepared) - len(missing)} of them finished before.', flush=True)
  count = len(prepared) - len(missing)

  def done(task: Task, status: str) -> None:
    nonlocal count
    count += status in (FINISHED, DIVERGED)
    print(f'[{count}/{len(prepared)}] {task.name}: {_said(sweep, task, status)}', flush=True)
    write_table(sweep, workdir)

  if missing:
    with launchers.stopping():
      LAUNCHERS[launcher](missing, jobs, done)


def _said(sweep: Sweep, task: Task, status: str) -> str:
  if status == CRASHED:
    return f'crashed twice: {read_json(task.path / "crashed.json")["message"]} (see {task.folder}/log.txt)'
  if status != FINISHED:
    return status
  metric = next(iter(sweep.spec['metrics']))
  result = flat(read_json(task.path / 'result.json'))
  return f'{metric} {result.get(metric, float("nan")):.4f}, {result.get("speed.seconds", 0.0):.0f} s of training'


def main(_: Any) -> None:
  workdir = pathlib.Path(command.required(WORKDIR))
  sweep = load(command.required(SWEEP), str(workdir), FIRST_SEED.value)
  if DRY_RUN.value:
    for index, task in enumerate(sweep.tasks):
      print(f'{index:4}  {task.status:8}  {task.name}')
    print(estimate(sweep, JOBS.value))
    return
  if INDEX.value is not None:
    if not 0 <= INDEX.value < len(sweep.tasks):
      raise UserError(f'--index={INDEX.value} is not one of the {len(sweep.tasks)} points, counted from 0')
    sweep = dataclasses.replace(
      sweep, **{field: getattr(sweep, field)[INDEX.value :][:1] for field in ('points', 'configs', 'tasks')}
    )
    prepare(sweep.tasks[0].path, sweep.configs[0])
    with launchers.stopping():
      status = launchers.run(sweep.tasks[0])
    print(f'{sweep.tasks[0].name}: {_said(sweep, sweep.tasks[0], status)}')
    sys.exit(status == CRASHED)
  workdir.mkdir(parents=True, exist_ok=True)
  run(sweep, workdir, LAUNCHER.value, JOBS.value)
  results = Results(
    sweep.name, sweep.spec, write_table(sweep, workdir), _fields(sweep.points),
    {task.name: task.path for task in sweep.tasks},
  )  # fmt: skip
  print(f'{workdir} has table.csv, table.jsonl and times.csv.')
  crashed = int((results.table['status'] == CRASHED).sum())
  if crashed:
    print(f'{crashed} points crashed: run the same command to try them again; no page until then.', file=sys.stderr)
    sys.exit(1)
  if RESULTS.value:
    line = f'python -m experiments.sweep --sweep={SWEEP.value} --workdir=runs/{sweep.name} --jobs={JOBS.value}'
    again = pd.read_csv(pathlib.Path(AGAIN.value) / 'table.csv') if AGAIN.value else None
    answer = pages.write(pathlib.Path(RESULTS.value), results, line, again)
    print(f'{pages.SUMMARY[answer]}: {pathlib.Path(RESULTS.value) / sweep.name}/README.md')


if __name__ == '__main__':
  command.run(main)
