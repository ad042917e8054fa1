"""What a run leaves in its folder: config.json at the start, result.json at the end."""

from collections.abc import Mapping
from importlib import metadata
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

from gpt_jax import hosts
from gpt_jax.training.checkpoints import latest_step
from gpt_jax.training.fields import flat
from gpt_jax.types import UserError

PACKAGES = ('gpt_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')

# Fields that a resumed run may change: they say where and how it runs, not what it computes.
FREE = ('mesh.', 'microbatches', 'checkpoint_every', 'keep_checkpoints')

# What a run adds when it has read its data; who has not, such as a sweep, asks nothing of it.
ADDED = ('num_steps',)


def prepare(workdir: str | os.PathLike, config: Mapping[str, Any]) -> bool:
  """Claims `workdir` for a run of `config`; whether that run is finished already.

  A folder of a run with another config is refused and left as it is, once it has a checkpoint. May be called early, and
  again.
  """
  workdir = pathlib.Path(workdir)
  ours = json.loads(json.dumps(config))
  path, begun = workdir / 'config.json', latest_step(workdir) is not None
  if path.exists() and 'config' not in read_json(path):
    raise UserError(f"{path} is not a run's config: use another --workdir")
  if begun and not path.exists():
    raise UserError(f'{workdir} has checkpoints but no config.json: use another --workdir')
  if begun:
    _compare(workdir, flat(ours), flat(read_json(path)['config']))
    return (workdir / 'result.json').exists()
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if path.exists() and read_json(path)['config'] != ours:
      (workdir / 'diverged.json').unlink(missing_ok=True)  # the mended config may not
  except OSError as error:
    raise UserError(f'--workdir={workdir} can not be made: {error.strerror}') from None
  write_json(path, {'config': ours, 'seed': ours.get('seed'), 'commit': _commit(), 'versions': _versions()})
  return False


def _compare(workdir: pathlib.Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
  for field in [*ours, *(field for field in theirs if field not in ours)]:
    if field.startswith(FREE) or (field not in ours and field in ADDED):
      continue
    now, then = (json.dumps(fields[field]) if field in fields else 'absent' for fields in (ours, theirs))
    if now != then:
      raise UserError(f'config.{field} is {now} but {workdir} was begun with {then}: use that, or another --workdir')


def _versions() -> dict[str, str]:
  versions = {'python': platform.python_version()}
  for package in PACKAGES:
    try:
      versions[package] = metadata.version(package)
    except metadata.PackageNotFoundError:
      continue
  return versions


def _commit() -> str | None:
  """The commit of the code that runs, if it runs from a checkout."""
  root = pathlib.Path(__file__).parents[2]
  if not (root / '.git').exists():
    return None
  try:
    described = subprocess.run(
      ['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*'],
      cwd=root, capture_output=True, text=True, timeout=10, check=True,
    )  # fmt: skip
  except (OSError, subprocess.SubprocessError):
    return None
  return described.stdout.strip()


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file."""
  try:
    value = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise UserError(f'{path} can not be read ({error}): restore it, or use another --workdir') from None
  if not isinstance(value, dict):
    raise UserError(f'{path} holds no JSON object: restore it, or use another --workdir')
  return value


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  """Writes all of it or nothing."""
  write_whole(path, json.dumps(value, indent=2) + '\n')


def write_whole(path: pathlib.Path, text: str) -> None:
  """Replaces a file in one move: a killed program leaves the old one. Of several processes one writes."""
  if not hosts.leads():
    return
  temporary = path.with_name(path.name + '.tmp')
  temporary.write_text(text)
  os.replace(temporary, path)
