"""Runs every point of a sweep, and writes one table and a page of what came out.

python -m experiments.sweep --sweep=configs/sweeps/NAME.py --workdir=DIR [--jobs=2] [--dry_run] [--index=I]

Run again, it skips what is finished and resumes what was cut.
"""

import dataclasses
import os
import pathlib
import sys
from typing import Any

from absl import flags
import pandas as pd

from experiments import command, launchers
from experiments.launchers import CRASHED, DIVERGED, FINISHED, LAUNCHERS, MISSING, Task
from experiments.sweep_file import EXPERIMENTS, Sweep, load, varied
from gpt_jax.evaluation import pages
from gpt_jax.evaluation.findings import Results
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
    if status == MISSING:  # stopped
      return
    count += status in (FINISHED, DIVERGED)
    print(f'[{count}/{len(prepared)}] {task.name}: {_said(sweep, task, status)}', flush=True)
    write_table(sweep, workdir)

  if missing:
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
    sweep.name, sweep.spec, write_table(sweep, workdir), varied(sweep.points),
    {task.name: task.path for task in sweep.tasks},
  )  # fmt: skip
  print(f'{workdir} has table.csv, table.jsonl and times.csv.')
  crashed = int((results.table['status'] == CRASHED).sum())
  if crashed:
    print(f'{crashed} points crashed: run the same command to try them again; no page until then.', file=sys.stderr)
    sys.exit(1)
  if RESULTS.value:
    line = f'python -m experiments.sweep --sweep={SWEEP.value} --workdir=runs/{sweep.name} --jobs={JOBS.value}'
    line += f' --first_seed={FIRST_SEED.value}' if FIRST_SEED.value else ''
    again = pd.read_csv(pathlib.Path(AGAIN.value) / 'table.csv') if AGAIN.value else None
    answer = pages.write(pathlib.Path(RESULTS.value), results, line, again)
    print(f'{pages.SUMMARY[answer]}: {pathlib.Path(RESULTS.value) / sweep.name}/README.md')


if __name__ == '__main__':
  command.run(main)
