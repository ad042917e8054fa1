"""Train states on disk: DIR/checkpoints/STEP, written while training goes on."""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib
from typing import Any

from etils import epath
import jax
from jax.tree_util import keystr
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from gpt_jax.types import Params, UserError


@dataclasses.dataclass
class LatestAndBest(checkpoint_managers.PreservationPolicy):
  """Keeps the last `latest` checkpoints and the one of least `score(step)`; None: not scored."""

  latest: int
  score: Callable[[int], float | None]

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
    del context
    steps = [info.step for info in checkpoints]
    scored = [(score, step) for step in steps if (score := self.score(step)) is not None]
    kept = {*sorted(steps)[-self.latest :], *(step for _, step in sorted(scored)[:1])}
    return [step in kept for step in steps]


def open_checkpoints(
  workdir: str | pathlib.Path, *, keep: int = 3, score: Callable[[int], float | None] = lambda step: None
) -> ocp.CheckpointManager:
  """The checkpoints of a run. `score` of a step is asked when old ones are dropped: lower is better."""
  return ocp.CheckpointManager(
    pathlib.Path(workdir).absolute() / 'checkpoints',
    item_handlers=ocp.PyTreeCheckpointHandler(),
    options=ocp.CheckpointManagerOptions(preservation_policy=LatestAndBest(max(1, keep), score)),
  )


def save(checkpoints: ocp.CheckpointManager, step: int, state: Any) -> None:
  """Writes `state` in the background; it is copied from the devices before this returns, so it may be donated."""
  checkpoints.save(step, args=ocp.args.PyTreeSave(by_path(state)))


def restore(workdir: str | pathlib.Path, like: Any, step: int) -> Any:
  """The state after `step`, as `like` has it: a tree of ShapeDtypeStruct with shardings."""
  folder = _folder(workdir, step)
  saved, wanted = _saved(folder), by_path(like)
  extra = next((name for name in saved if name not in wanted), None)
  if extra:
    raise UserError(f'{folder} has {extra}, which this run has not: use the config it was made with')
  return jax.tree.unflatten(jax.tree.structure(like), _read(folder, saved, wanted).values())


def restore_params(workdir: str | pathlib.Path, like: Params, step: int | None = None) -> Params:
  """The parameters of a run's last (or given) step, whatever its optimiser was; their average, where it kept one.

  `like` is a tree of ShapeDtypeStruct, with shardings where arrays are to be placed.
  """
  step = latest_step(workdir) if step is None else step
  if step is None:
    raise UserError(f'{workdir} has no checkpoint: train there first, or name another folder')
  folder = _folder(workdir, step)
  saved = _saved(folder)
  kept = next((name for name in saved if name.startswith('opt_state.') and '.average.' in name), None)
  prefix = kept.split('.average.')[0] + '.average.' if kept else 'params.'
  wanted = {prefix + name: leaf for name, leaf in by_path(like).items()}
  return jax.tree.unflatten(jax.tree.structure(like), _read(folder, saved, wanted).values())


def latest_step(workdir: str | pathlib.Path) -> int | None:
  """The last step of which a whole checkpoint is there."""
  folder = pathlib.Path(workdir).absolute() / 'checkpoints'
  return max(ocp.utils.checkpoint_steps(folder), default=None) if folder.is_dir() else None


def _read(folder: pathlib.Path, saved: dict[str, tuple[int, ...]], wanted: dict[str, Any]) -> dict[str, Any]:
  for name, leaf in wanted.items():
    if name not in saved:
      raise UserError(f'{folder} has no {name}: it was made by another model or optimizer; use its config')
    if saved[name] != tuple(leaf.shape):
      raise UserError(f'{folder} has {name} of shape {saved[name]}, not {leaf.shape}: use the config it was made with')
  arguments = ocp.args.PyTreeRestore(
    item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
  )
  try:
    arrays = ocp.PyTreeCheckpointHandler().restore(epath.Path(folder / 'default'), args=arguments)
  except Exception as error:  # whatever a broken file makes Orbax, TensorStore or json raise
    raise _unreadable(folder, error) from error
  return {name: arrays[name] for name in wanted}


def _saved(folder: pathlib.Path) -> dict[str, tuple[int, ...]]:
  """Shapes by name."""
  if not folder.is_dir():
    raise UserError(f'{folder} does not exist: pick a step that was saved')
  try:
    tree = ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder / 'default')).tree
    return {name: tuple(leaf.shape) for name, leaf in tree.items()}
  except Exception as error:
    raise _unreadable(folder, error) from error


def _folder(workdir: str | pathlib.Path, step: int) -> pathlib.Path:
  return pathlib.Path(workdir).absolute() / 'checkpoints' / str(step)


def _unreadable(folder: pathlib.Path, error: Exception) -> UserError:
  reason = (str(error).splitlines() or [''])[0][:200]
  return UserError(f'{folder} is not a readable checkpoint ({reason}); remove it to go on from an earlier one')


def by_path(tree: Any) -> dict[str, Any]:
  """Leaves by dotted path: on disk, a name is all that says what an array is."""
  return {keystr(path, simple=True, separator='.'): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
