"""Copies of the state on each machine's own disk, between checkpoints: each process keeps what its devices hold."""

import os
import pathlib
import shutil
import uuid
import zipfile

import jax
import numpy as np

from gpt_jax import hosts
from gpt_jax.training.checkpoints import by_path
from gpt_jax.training.loop import TrainState, all_finite
from gpt_jax.training.workdir import read_json, write_json
from gpt_jax.types import Metrics, UserError

KEPT = 2
"""A process that was killed while it copied has the copy before, and so must the others."""


class EmergencyCopies:
  """A hook that copies the state every so many steps, and what finds the copies again.

  They are for the same run on the same machines and mesh; for any other, or where one machine is new, the checkpoints
  in the work folder serve. Without checkpoints there they count for nothing.

  Args:
    workdir: of the run. It gets a name for the run, that copies of an earlier one in its place are not taken for its.
    folder: on a disk of this machine; '': no copies are made, none found.
    every: steps.

  Raises:
    UserError: the folder can not be made, or `every` is none.
  """

  def __init__(self, workdir: pathlib.Path, folder: str, every: int):
    self._folder, self._every = pathlib.Path(folder) if folder else None, every
    if self._folder is None:
      return
    if every < 1:
      raise UserError(f'--emergency_every={every} must be at least 1')
    name = workdir / 'run_id.json'
    if not name.exists():
      write_json(name, {'id': uuid.uuid4().hex})
    hosts.meet('the run has a name')
    self._folder = self._folder / read_json(name)['id'] / str(jax.process_index())
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise UserError(f'--emergency_dir={folder} can not be made: {error.strerror}') from None

  def __call__(self, index: int, state: TrainState, metrics: Metrics) -> None:
    del metrics
    if self._folder is None or index % self._every or not all_finite(state):
      return
    parts = {
      f'{name} {_place(shard.index, leaf.shape)}': shard.data
      for name, leaf in by_path(state).items()
      for shard in leaf.addressable_shards
    }
    temporary = self._folder / 'unfinished'
    with temporary.open('wb') as file:
      np.savez(file, allow_pickle=False, **jax.device_get(parts))
    os.replace(temporary, self._path(index))
    for step in self._steps()[:-KEPT]:
      self._path(step).unlink()

  def newest(self, like: TrainState) -> int:
    """The last step of which every process has all that its devices are to hold of `like`; 0: there is none."""
    steps = [] if self._folder is None else [step for step in self._steps() if self._serves(step, like)]
    step = hosts.least(max(steps, default=0))
    return step * hosts.least(step in steps)

  def restore(self, like: TrainState, step: int) -> TrainState:
    """The state after `step`, as `like` has it: a tree of ShapeDtypeStruct with shardings."""
    with np.load(self._path(step), allow_pickle=False) as parts:
      arrays = [
        jax.make_array_from_callback(
          leaf.shape,
          leaf.sharding,
          # numpy reads the types that it does not know as plain bytes
          lambda index: parts[f'{name} {_place(index, leaf.shape)}'].view(leaf.dtype),  # noqa: B023  called at once
        )
        for name, leaf in by_path(like).items()
      ]
    return jax.tree.unflatten(jax.tree.structure(like), arrays)

  def remove(self) -> None:
    """Removes the copies, which a finished run needs no more."""
    if self._folder is not None:
      shutil.rmtree(self._folder)

  def _path(self, step: int) -> pathlib.Path:
    assert self._folder is not None
    return self._folder / f'{step}.npz'

  def _steps(self) -> list[int]:
    assert self._folder is not None
    return sorted(int(path.stem) for path in self._folder.glob('*.npz'))

  def _serves(self, step: int, like: TrainState) -> bool:
    wanted = {
      f'{name} {_place(index, leaf.shape)}'
      for name, leaf in by_path(like).items()
      for index in leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
    }
    try:
      with zipfile.ZipFile(self._path(step)) as file:
        return file.testzip() is None and wanted == {name.removesuffix('.npy') for name in file.namelist()}
    except (OSError, zipfile.BadZipFile):
      return False


def _place(index: tuple[slice, ...] | None, shape: tuple[int, ...]) -> str:
  """Which part of an array: where it begins and ends along each axis."""
  ends = (part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True))
  return ','.join(f'{begin}-{end}' for begin, end in ends)
