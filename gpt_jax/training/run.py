"""Everything of a training run but its model, data and objective."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import json
import os
import pathlib
import signal
import statistics
import threading
from typing import Any

import jax
from tqdm import tqdm

from gpt_jax import hosts
from gpt_jax.training.checkpoints import latest_step, open_checkpoints, restore, save
from gpt_jax.training.emergency import EmergencyCopies
from gpt_jax.training.hardware import utilisation
from gpt_jax.training.logs import Log
from gpt_jax.training.loop import TrainState, all_finite, fit, init_state
from gpt_jax.training.optimizers import averaged, learning_rates
from gpt_jax.training.plots import plot
from gpt_jax.training.profile import Profile, compilations
from gpt_jax.training.program import Placement, Program, check_memory, named, program
from gpt_jax.training.table import parameter_table
from gpt_jax.training.workdir import prepare, read_json, write_json
from gpt_jax.types import Batch, Diverged, LossFn, Params


def run(
  workdir: str | os.PathLike,
  config: Mapping[str, Any],
  *,
  init: Callable[[jax.Array], Params],
  first: Callable[[Params], Params] | None = None,
  loss_fn: LossFn,
  source: Callable[[int, TrainState], Iterable[Batch]],
  placement: Placement,
  tokens_per_step: Callable[[int], int],
  flops_per_token: float | int,
  causal_flops_per_token: float | int | None = None,
  evaluations: Mapping[str, Callable[[Params], Mapping[str, float]]] | None = None,
  best: tuple[str, bool] = ('validation_loss', False),
  describe_batch: Callable[[int], str] = lambda index: f'number {index}, counted from 0',
  summary: Callable[[Params], dict[str, Any]] = lambda params: {},
  profile: tuple[int, int] | None = None,
  emergency: tuple[str, int] = ('', 0),
) -> TrainState | None:
  """Trains in `workdir` until config.num_steps, from where an earlier run of the same config stopped.

  Of `config` it reads num_steps, seed, microbatches, optimizer, log_every, eval_every, checkpoint_every and
  keep_checkpoints (an `every` of 0: only at the end; evaluations are at the start too). Training starts from the
  parameters that `init(key)` draws or, where they come from elsewhere, from what `first` returns: it is given their
  shapes with the shardings they are to have, and is called only when there is no checkpoint to go on from.
  `source` gives batches of this host's rows, as numpy arrays; jax's arrays are taken as they lie.
  An evaluation NAME that returns {'loss': x} makes the metric NAME_loss. `best` is the metric that decides which
  checkpoint is best, and whether it is by the most of it. Evaluations and `summary`, whose result goes to result.json,
  see the averaged parameters where the optimiser keeps an average. What depends on the machine stands in result.json
  under `speed`; all else, two runs of one config have alike. A run that leaves the finite numbers leaves diverged.json.
  Utilisation is by `flops_per_token`, and where it is given, by `causal_flops_per_token` too; see hardware.utilisation.
  `describe_batch(index)` says which rows the batch after `index` steps has, for error messages.
  `profile` is the first and the last step that are traced, into DIR/profile.
  `emergency` is a folder on a disk of each machine, and how often the state is copied there; see EmergencyCopies.
  None when the run was finished before. SIGINT and SIGTERM save and end the program.
  """
  workdir = pathlib.Path(workdir)
  if prepare(workdir, config):
    print(f'{workdir} is finished; to train again, use another --workdir.')
    print(json.dumps(read_json(workdir / 'result.json'), indent=2))
    return None
  evaluations, num_steps = evaluations or {}, config['num_steps']
  made = program(config, init, loss_fn, placement)
  copies = EmergencyCopies(workdir, *emergency)
  state = _begin(workdir, made, first, config['seed'], copies)
  start = int(state.step)
  log = Log(
    workdir,
    start=start,
    num_steps=num_steps,
    log_every=config['log_every'],
    learning_rates=learning_rates(config['optimizer'], num_steps),
    tokens_per_step=tokens_per_step,
    describe_batch=describe_batch,
  )
  scores = {step: score for score, step in _scores(log.lines, *best)}
  hosts.meet('the log is read')
  checkpoints = open_checkpoints(workdir, keep=config['keep_checkpoints'], score=scores.get)
  evaluating = lambda index: bool(evaluations) and (index in (0, num_steps) or _due(config['eval_every'], index))

  def evaluate(index: int, state: TrainState) -> None:
    line: dict[str, float | int] = {'step': index}
    for name, evaluation in evaluations.items():
      line |= {f'{name}_{key}': float(value) for key, value in evaluation(_best_of(state)).items()}
    log.write(line)
    scores.update({step: score for score, step in _scores(log.lines[-1:], *best)})
    if index != num_steps:  # all is drawn at the end
      plot(workdir, log.lines)
    tqdm.write(', '.join(f'{name} {value:.4f}' if name != 'step' else f'step {value}' for name, value in line.items()))

  def milestone(index: int, state: TrainState, _: Any) -> None:
    """Saves, then evaluates: what goes wrong in an evaluation costs no training."""
    last, stop = index == num_steps, hosts.stop_after(index) or next(iter(stops), None)
    if not (last or stop or evaluating(index) or _due(config['checkpoint_every'], index)):
      return
    with log.paused():
      if not all_finite(state):
        raise Diverged(f'the parameters or moments are not finite after step {index}: lower optimizer.learning_rate')
      save(checkpoints, index, state)
      if stop:
        checkpoints.wait_until_finished()
        tqdm.write(f'Stopped and saved after step {index}. The same command goes on from there.')
        raise SystemExit(128 + stop)
      if evaluating(index):
        evaluate(index, state)

  placed = lambda index, state: (placement.batch(batch) for batch in source(index, state))
  with (
    named(placement.mesh),
    compilations() as compiled,
    _signals() as stops,
    contextlib.closing(log),
    contextlib.closing(Profile(workdir / 'profile', profile, num_steps)) as tracing,
    contextlib.closing(checkpoints),
  ):
    if evaluating(start) and not any(line['step'] == start and 'loss' not in line for line in log.lines):
      with log.paused():
        evaluate(start, state)
    with _divergence(workdir / 'diverged.json'):
      state = fit(state, placed, made.step, num_steps=num_steps, hooks=(log, tracing, milestone, copies))
    checkpoints.wait_until_finished()
    plot(workdir, log.lines)
    speed = {**_speed(log, flops_per_token, causal_flops_per_token), **compiled.told()}
    write_json(workdir / 'result.json', _result(log, best, state.params, speed, summary(_best_of(state))))
    hosts.meet('the result is written')
    copies.remove()
  return state


def _begin(
  workdir: pathlib.Path,
  made: Program,
  first: Callable[[Params], Params] | None,
  seed: int,
  copies: EmergencyCopies,
) -> TrainState:
  """The state to start from, born, taken from elsewhere or restored, in its place."""
  said = check_memory(made.state)
  step = hosts.agreed(latest_step(workdir) or 0)
  copied = copies.newest(made.state) if step else 0
  if copied > step:
    print(f'Resuming {workdir} after step {copied}, by the copies on the disks of its machines.')
    return copies.restore(made.state, copied)
  if step:
    print(f'Resuming {workdir} after step {step}.')
    return restore(workdir, made.state, step)
  print(parameter_table(made.state.params), said, sep='\n')
  if first is None:
    return jax.jit(made.birth, out_shardings=made.shardings)(jax.random.key(seed))
  params = first(made.state.params)
  return jax.jit(lambda params: init_state(params, made.optimizer), out_shardings=made.shardings)(params)


def _best_of(state: TrainState) -> Params:
  average = averaged(state.opt_state)
  return state.params if average is None else average


def _due(every: int, index: int) -> bool:
  return every > 0 and index % every == 0


TIMES = ('seconds', 'tokens_per_second')


def _scores(lines: Iterable[Mapping[str, Any]], metric: str, most: bool) -> list[tuple[float, int]]:
  """A score, less of which is better, and the step of each line that has the metric; what is not finite has none."""
  return [(-line[metric] if most else line[metric], line['step']) for line in lines if line.get(metric) is not None]


def _result(
  log: Log, best: tuple[str, bool], params: Params, speed: dict[str, Any], measured: dict[str, Any]
) -> dict[str, Any]:
  """The last value of everything logged, the best of the metric that decides, and what else was measured."""
  left_out = (*TIMES, 'learning_rate', 'grad_norm')
  result = {name: value for line in log.lines for name, value in line.items() if name not in left_out}
  result['parameters'] = sum(leaf.size for leaf in jax.tree.leaves(params))
  metric, most = best
  if scored := _scores(log.lines, metric, most):
    score, result['best_step'] = min(scored)
    result[f'best_{metric}'] = -score if most else score
  speed = {**speed, **measured.pop('speed', {})}
  return {**result, **measured, 'speed': speed}


def _speed(log: Log, flops_per_token: float | int, causal_flops_per_token: float | int | None) -> dict[str, Any]:
  """Of the whole run; the median leaves out a pause of the machine."""
  speed: dict[str, Any] = {'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}'}
  seconds, speeds = ([line[name] for line in log.lines if name in line] for name in TIMES)
  if seconds:
    speed['seconds'] = seconds[-1]
  if speeds:
    median = statistics.median(speeds)
    speed |= {'tokens_per_second': median, **utilisation(median, flops_per_token, causal_flops_per_token)}
  return speed


@contextlib.contextmanager
def _divergence(path: pathlib.Path) -> Iterator[None]:
  """Leaves a file that says so when training diverges."""
  path.unlink(missing_ok=True)
  try:
    yield
  except Diverged as error:
    write_json(path, {'message': str(error)})
    raise


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
  """Collects SIGINT and SIGTERM; a second one acts as it did before. Of several processes it is JAX that does."""
  stops: list[int] = []
  if threading.current_thread() is not threading.main_thread() or jax.distributed.is_initialized():
    yield stops
    return

  def note(number, frame):
    del frame
    stops.append(number)
    signal.signal(number, before[number])
    tqdm.write('Saving before leaving; again to leave at once.')

  before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield stops
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
