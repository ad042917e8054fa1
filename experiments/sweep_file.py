"""Sweep files, read and found right before anything runs."""

from collections.abc import Mapping, Sequence
import dataclasses
import importlib.util
import os
import pathlib
import re
import sys
from typing import Any

from ml_collections import ConfigDict

from experiments import actors, preferences, runs
from experiments.launchers import Task
from gpt_jax.names import choose, nearest
from gpt_jax.training.fields import flat
from gpt_jax.types import UserError

EXPERIMENTS: Mapping[str, Any] = {'pretrain': runs, 'reward': preferences, 'policy': actors}
"""What can run a point, and the module that checks and completes its configs, and knows what they cost."""

REQUIRED = ('claim', 'source', 'experiment', 'config', 'points', 'baseline', 'metrics', 'expect')
RELATIONS = {
  'lower': ('metric', 'of', 'than'),
  'higher': ('metric', 'of', 'than'),
  'alike': ('metric', 'of', 'than', 'margin'),
  'straight': ('margin',),
}
OPTIONAL: Mapping[str, Any] = {
  'x': None,
  'x_label': None,
  'columns': None,
  'fit': False,
  'frontier': (),
  'curves': {},
  'summary': {},
  'threads': 1,
}


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
  spec = called(path, 'get_sweep')
  if not isinstance(spec, Mapping):
    raise UserError(f'{path}: get_sweep() gives {type(spec).__name__}, not a dict')
  spec = {**OPTIONAL, **spec}
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
    config = called(spec['config'], 'get_config')
    _override(config, point, path)
    try:
      configs.append(experiment.check(config.to_dict()))
    except UserError as error:
      raise UserError(f'{path}: point {name}: {error}') from None
    folder = str(pathlib.Path(workdir).absolute() / 'points' / name)
    overrides = [f'--config.{field}={value}' for field, value in point.items()]
    module = f'experiments.{spec["experiment"]}'
    line = (sys.executable, '-m', module, f'--config={spec["config"]}', *overrides, f'--workdir={folder}')
    tasks.append(Task(name, line, folder, spec['threads'], os.getcwd()))
  _check_comparisons(path, spec, points)
  return Sweep(pathlib.Path(path).stem, spec, points, configs, tasks)


def varied(points: Sequence[Mapping[str, Any]]) -> list[str]:
  """What the points vary, seeds apart."""
  fields = dict.fromkeys(field for point in points for field in point if field != 'seed')
  return [field for field in fields if len({repr(point.get(field)) for point in points}) > 1]


def _check_comparisons(path: str, spec: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> None:
  """What is to be compared must be among the points: better known now than after the last of them."""
  settings = [{field: point[field] for field in varied(points) if field in point} for point in points]
  has = lambda wanted: [setting for setting in settings if wanted.items() <= setting.items()]
  if not has(spec['baseline']):
    raise UserError(f'{path}: no point has the baseline {spec["baseline"]}')
  for expectation in spec['expect']:
    needed = RELATIONS.get(expectation.get('is'))
    if needed is None or not {*needed} <= expectation.keys() <= {'is', 'where', 'margin', *needed}:
      known = '; '.join(f'is {relation!r} with {", ".join(fields)}' for relation, fields in RELATIONS.items())
      raise UserError(f'{path}: expect has {expectation}; known: {known}')
    if expectation['is'] == 'straight':
      if not (spec['fit'] and spec['x']):
        raise UserError(f"{path}: expect asks for a straight line, and the sweep has no 'fit' and 'x'")
      continue
    wanted = {**expectation.get('where', {}), **expectation['of']}
    for setting in has(wanted) or [wanted]:
      for side in (setting, {**setting, **expectation['than']}):
        if side not in settings:
          raise UserError(f'{path}: expect compares {side}, which is no point')


def called(path: str, function: str) -> Any:
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
