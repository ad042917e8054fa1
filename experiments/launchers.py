"""Where the points of a sweep run: a point is a command, and a launcher only decides where it is called."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import threading
from typing import Any

from gpt_jax.types import UserError

FINISHED, DIVERGED, CRASHED, MISSING = 'finished', 'diverged', 'crashed', 'missing'


@dataclasses.dataclass(frozen=True)
class Task:
  """A point: its name, the command that runs it, and the folder the command leaves its result in."""

  name: str
  command: tuple[str, ...]
  folder: str
  threads: int
  cwd: str

  @property
  def path(self) -> pathlib.Path:
    return pathlib.Path(self.folder)

  @property
  def status(self) -> str:
    """How the point ended, by what its folder holds."""
    for status, name in ((FINISHED, 'result.json'), (DIVERGED, 'diverged.json'), (CRASHED, 'crashed.json')):
      if (self.path / name).exists():
        return status
    return MISSING


Done = Callable[[Task, str], None]
"""Called with each point that ended, and its status."""

_stopping = threading.Event()
_running: set[subprocess.Popen] = set()


def run(task: Task) -> str:
  """Runs a point, once more if it crashes, unless its result is there; returns its status.

  The lock is held by the command too, so a point that outlives its sweep is waited for and not run twice. XLA's CPU
  backend takes the number of its threads from NPROC and rounds by it: so a point is the same wherever it runs.
  """
  task.path.mkdir(parents=True, exist_ok=True)
  with (task.path / '.lock').open('a') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    (task.path / 'crashed.json').unlink(missing_ok=True)
    code = 0
    for _ in range(2):
      if _stopping.is_set() or task.status != MISSING:
        return task.status
      code = _call(task, lock.fileno())
    if not _stopping.is_set() and task.status == MISSING:
      said = (task.path / 'log.txt').read_text('utf-8', 'replace').strip().splitlines()[-1:]
      (task.path / 'crashed.json').write_text(json.dumps({'code': code, 'message': ''.join(said)}))
    return task.status


def _call(task: Task, lock: int) -> int:
  with (task.path / 'log.txt').open('ab') as log:
    process = subprocess.Popen(
      task.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=task.cwd, pass_fds=[lock],
      env={**os.environ, 'NPROC': str(task.threads)}, start_new_session=True,
    )  # fmt: skip
  _running.add(process)
  if _stopping.is_set():
    process.terminate()
  try:
    return process.wait()
  finally:
    _running.discard(process)


def local(tasks: Sequence[Task], jobs: int, done: Done) -> None:
  """`jobs` points at a time on this machine."""
  with stopping(), ThreadPoolExecutor(jobs) as pool:
    futures = {pool.submit(run, task): task for task in tasks}
    for future in as_completed(futures):
      done(futures[future], future.result())


def ray(tasks: Sequence[Task], jobs: int, done: Done) -> None:
  """On the Ray cluster of RAY_ADDRESS, or one of `jobs` places on this machine; a GPU each where it has some.

  Interrupted, it leaves; points that run then end by themselves, and the next sweep waits for them.
  """
  ray = _library('ray')
  ray.init(
    **({} if os.environ.get('RAY_ADDRESS') else {'num_cpus': jobs, 'include_dashboard': False}),
    log_to_driver=False,
    logging_level='ERROR',
  )
  try:
    gpus = min(1, ray.cluster_resources().get('GPU', 0))
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(run)
    waiting = {remote.remote(task): task for task in tasks}
    while waiting:
      (future,), _ = ray.wait(list(waiting))
      done(waiting.pop(future), ray.get(future))
  finally:
    ray.shutdown()


def slurm(tasks: Sequence[Task], jobs: int, done: Done, cluster: str = 'slurm') -> None:
  """As one array of Slurm jobs, `jobs` at a time; what the cluster asks for more is taken from SBATCH_ variables.

  Interrupted, it leaves the jobs to Slurm.
  """
  submitit = _library('submitit')
  executor = submitit.AutoExecutor(folder=pathlib.Path(tasks[0].folder).parents[1] / 'slurm', cluster=cluster)
  executor.update_parameters(timeout_min=24 * 60, cpus_per_task=max(task.threads for task in tasks))
  if cluster == 'slurm':
    executor.update_parameters(slurm_array_parallelism=jobs)
  for job, task in zip(executor.map_array(run, tasks), tasks, strict=True):
    done(task, job.result())


LAUNCHERS: Mapping[str, Callable[[Sequence[Task], int, Done], None]] = {'local': local, 'ray': ray, 'slurm': slurm}


def _library(name: str) -> Any:
  import importlib

  try:
    return importlib.import_module(name)
  except ImportError:
    raise UserError(f"--launcher needs {name}: pip install 'gpt_jax[launchers]'") from None


@contextlib.contextmanager
def stopping() -> Iterator[None]:
  """SIGINT and SIGTERM stop the running points, which save, and then the program."""

  def stop(number: int, frame: Any) -> None:
    del frame
    signal.signal(number, before[signal.Signals(number)])
    _stopping.set()
    print('Stopping: what runs is saved; the same command goes on from there.', flush=True)
    for process in list(_running):
      process.send_signal(signal.SIGTERM)

  before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
    stopped = _stopping.is_set()
    _stopping.clear()
  if stopped:
    raise SystemExit(130)
