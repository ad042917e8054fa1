"""Runs that are killed and go on, on the same devices and on others: a table of them, and what differed.

  python bench/resumes.py [--quick] [--seed N]

A case trains a small language model on a layout, a mesh of 1, 2, 4 or 8 CPU devices, is killed by SIGKILL, and goes on
to its end on the same layout or another. It is killed at a random moment of a random step, or in the middle of a save:
when the folder of a checkpoint that is not whole stands on disk. Three things are compared with an unbroken run:

order     every batch that was read, before and after: the same rows at the same steps, always
bits      on one layout: every number of metrics.jsonl but times, and the last state, averages and moments included
losses    on two layouts: the largest relative difference to the unbroken run of one device; at most TOLERANCE

Exits with 1 if a case fails.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import pathlib
import random
import sys
import tempfile
import time

from tabulate import tabulate

LAYOUTS = {
  1: ({},),
  2: ({'data': 2}, {'fsdp': 2}, {'tensor': 2}),
  4: ({'data': 4}, {'fsdp': 4}, {'tensor': 4}, {'fsdp': 2, 'tensor': 2}),
  8: ({'data': 8}, {'fsdp': 8}, {'data': 2, 'fsdp': 2, 'tensor': 2}, {'fsdp': 2, 'tensor': 4}),
}
TOLERANCE = 1e-5
STEPS, EVERY, ROWS, CONTEXT, VOCABULARY = 24, 4, 8, 16, 64
KILLS = ('in a step', 'in a save')
TIMES = ('seconds', 'tokens_per_second')


def train(workdir: str, devices: int, mesh: dict, compiled: str) -> None:
  """A run in a process of its own; read.jsonl gets a line of every batch, and state.txt what came out at last."""
  os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={devices}'
  folder = pathlib.Path(workdir)
  sys.stdout = sys.stderr = (folder / 'said.txt').open('a')

  from absl import logging
  import jax
  import jax.numpy as jnp
  import numpy as np

  from gpt_jax.data import mixture
  from gpt_jax.data.rows import Rows, Stream
  from gpt_jax.models.heads import LanguageModel
  from gpt_jax.models.parts import from_config
  from gpt_jax.objectives.likelihood import next_token_loss
  from gpt_jax.sharding import Placement, make_mesh
  from gpt_jax.training.optimizers import FIELDS
  from gpt_jax.training.run import run

  logging.set_verbosity(logging.ERROR)
  jax.config.update('jax_compilation_cache_dir', compiled)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  sizes = {'num_layers': 2, 'model_dim': 32, 'num_heads': 4, 'num_kv_heads': 4, 'mlp': 'gelu(64)'}
  cfg = from_config({'family': 'gpt2_small', **sizes, 'positions': f'learned({CONTEXT})', 'vocab_size': VOCABULARY})
  tokens = np.random.default_rng(0).integers(0, VOCABULARY, 40 * CONTEXT).astype(np.uint16)
  rows = Rows(Stream('random', tokens, np.zeros(1, np.int64), tokens.size), CONTEXT)
  batches = mixture.batches([rows], [1.0], ROWS, seed=1)
  born = LanguageModel(cfg.evaluated())
  read = (folder / 'read.jsonl').open('a')

  def source(index, state):
    del state
    batch = batches(index)
    print(json.dumps([index, hashlib.sha256(batch['tokens'].tobytes()).hexdigest()]), file=read, flush=True)
    time.sleep(0.01)  # so that there are moments to be killed in
    return [batch]

  config = {
    'num_steps': STEPS, 'seed': 3, 'microbatches': 1, 'optimizer': {**FIELDS, 'learning_rate': 1e-3, 'ema': 0.9},
    'log_every': 1, 'eval_every': 0, 'checkpoint_every': EVERY, 'keep_checkpoints': 2, 'mesh': mesh,
  }  # fmt: skip
  state = run(
    workdir,
    config,
    init=lambda key: born.init(key, jnp.zeros((1, 1), jnp.int32)),
    loss_fn=next_token_loss(LanguageModel(cfg)),
    source=source,
    placement=Placement(make_mesh(mesh)),
    tokens_per_step=lambda index: ROWS * CONTEXT,
    flops_per_token=1.0,
  )
  whole = hashlib.sha256(b''.join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)))
  (folder / 'state.txt').write_text(whole.hexdigest())
  read.close()
  os._exit(0)


def lines(path: pathlib.Path) -> list:
  """The whole lines of a file that may not be there yet."""
  return [json.loads(line) for line in path.read_text().split('\n')[:-1]] if path.exists() else []


def logged(workdir: pathlib.Path) -> list[dict]:
  kept = lines(workdir / 'metrics.jsonl')
  return [{name: value for name, value in line.items() if name not in TIMES} for line in kept]


def half_saved(workdir: pathlib.Path) -> list[str]:
  """Checkpoints that are being written."""
  folder = workdir / 'checkpoints'
  return [path.name for path in folder.iterdir() if not path.name.isdecimal()] if folder.exists() else []


class Trials:
  """Runs in a folder, their processes forked from one that has imported all."""

  def __init__(self, folder: pathlib.Path, seed: int):
    self.folder, self.random = folder, random.Random(seed)
    self.context = multiprocessing.get_context('forkserver')
    self.context.set_forkserver_preload(['gpt_jax.training.run', 'gpt_jax.models.parts', 'gpt_jax.data.mixture'])

  def begin(self, workdir: pathlib.Path, layout: tuple[int, dict]) -> multiprocessing.Process:
    workdir.mkdir(exist_ok=True)
    process = self.context.Process(target=train, args=(str(workdir), *layout, str(self.folder / 'compiled')))
    process.start()
    return process

  def finish(self, workdir: pathlib.Path, layout: tuple[int, dict]) -> None:
    process = self.begin(workdir, layout)
    process.join()
    if process.exitcode or not (workdir / 'state.txt').exists():
      raise SystemExit(f'{workdir} did not end well:\n{(workdir / "said.txt").read_text()[-3000:]}')

  def kill(self, workdir: pathlib.Path, layout: tuple[int, dict], how: str) -> bool:
    """Begins a run and kills it; whether it was killed as it was to be."""
    after = self.random.randrange(1, STEPS - 1)
    process = self.begin(workdir, layout)
    if how == 'in a save':
      after = min(after, STEPS - EVERY - 2)
      waits = lambda: len(lines(workdir / 'metrics.jsonl')) < after or not half_saved(workdir)
    else:
      waits = lambda: len(lines(workdir / 'metrics.jsonl')) < after
    while waits() and process.is_alive():
      time.sleep(0.0005)
    if how == 'in a step':
      time.sleep(self.random.uniform(0, 0.03))
    process.kill()
    process.join()
    return not (workdir / 'result.json').exists() and (how == 'in a step' or bool(half_saved(workdir)))

  def case(self, number: int, first: tuple[int, dict], then: tuple[int, dict], how: str) -> tuple[pathlib.Path, dict]:
    """The folder of a run that was killed and went on, and what its first process left."""
    for attempt in range(20):
      workdir = self.folder / f'case_{number}_{attempt}'
      if self.kill(workdir, first, how):
        break
    else:
      raise SystemExit(f'a run on {first} could not be killed {how}')
    done = len(lines(workdir / 'metrics.jsonl'))
    whole = [int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdecimal()]
    self.finish(workdir, then)
    return workdir, {'done': done, 'from': max(whole, default=0)}


def compared(workdir: pathlib.Path, left: dict, same: pathlib.Path, one: pathlib.Path, alike: bool) -> dict:
  """What a run that went on has as the unbroken ones: of its layout, if it had but one, and of one device."""
  expected = dict(lines(one / 'read.jsonl'))
  read = lines(workdir / 'read.jsonl')
  again = [step for step, _ in read][-(STEPS - left['from']) :]
  order = all(expected[step] == rows for step, rows in read) and again == list(range(left['from'], STEPS))
  ours, theirs = logged(workdir), logged(one)
  steps = [line['step'] for line in ours] == [line['step'] for line in theirs] == list(range(1, STEPS + 1))
  difference = max(abs(a['loss'] - b['loss']) / abs(b['loss']) for a, b in zip(ours, theirs, strict=True))
  found = {'order': order and steps, 'difference': difference}
  if alike:
    states = [(folder / 'state.txt').read_text() for folder in (workdir, same)]
    found['bits'] = ours == logged(same) and states[0] == states[1]
  return found


def cases(seed: int, quick: bool) -> list[tuple[tuple[int, dict], tuple[int, dict], str]]:
  """Every layout with itself, killed in both ways; then pairs of two, of which each layout is in some."""
  chosen = random.Random(seed)
  layouts = [(devices, mesh) for devices, meshes in LAYOUTS.items() for mesh in meshes]
  if quick:
    layouts = [layouts[0], layouts[2], layouts[10]]
  same = [(layout, layout, how) for layout in layouts for how in KILLS]
  pairs = [(first, then) for first in layouts for then in layouts if first != then]
  chosen.shuffle(pairs)
  return same + [(*pair, KILLS[number % 2]) for number, pair in enumerate(pairs[: 2 if quick else 30])]


def name(layout: tuple[int, dict]) -> str:
  return f'{layout[0]}: {" ".join(f"{axis}={size}" for axis, size in layout[1].items()) or "-"}'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--quick', action='store_true', help='few cases, within two minutes')
  parser.add_argument('--seed', type=int, default=0, help='of the moments and pairs')
  options = parser.parse_args()
  os.environ |= {'JAX_PLATFORMS': 'cpu', 'PYTHONWARNINGS': 'ignore'}  # what is killed leaves semaphores
  began = time.perf_counter()
  chosen = cases(options.seed, options.quick)
  table, failed = [], 0
  with tempfile.TemporaryDirectory() as folder:
    trials = Trials(pathlib.Path(folder), options.seed)
    unbroken: dict[str, pathlib.Path] = {}
    for layout in [(1, {}), *(first for first, _, _ in chosen)]:
      if name(layout) not in unbroken:
        unbroken[name(layout)] = trials.folder / f'unbroken_{len(unbroken)}'
        trials.finish(unbroken[name(layout)], layout)
    one = unbroken[name((1, {}))]
    for number, (first, then, how) in enumerate(chosen):
      workdir, left = trials.case(number, first, then, how)
      found = compared(workdir, left, unbroken[name(first)], one, first == then)
      good = found['order'] and found.get('bits', True) and found['difference'] <= TOLERANCE
      failed += not good
      bits = {True: 'equal', False: 'DIFFER', None: ''}[found.get('bits')]
      row = [name(first), name(then), how, left['done'], left['from'], 'exact' if found['order'] else 'BROKEN', bits]
      table.append([*row, found['difference']])
      print(f'{number + 1} of {len(chosen)}: {name(first)} -> {name(then)}, {how}', file=sys.stderr, flush=True)
  heads = ('begun on', 'went on on', 'killed', 'steps logged', 'from step', 'order', 'bits', 'loss, relative')
  print(tabulate(table, heads, floatfmt='.1e'))
  figures = {
    'cases': len(table),
    'failed': failed,
    'killed_in_a_save': sum(row[2] == 'in a save' for row in table),
    'order_exact': sum(row[5] == 'exact' for row in table),
    'same_layout': sum(row[6] != '' for row in table),
    'same_layout_bit_equal': sum(row[6] == 'equal' for row in table),
    'largest_difference': max(row[7] for row in table),
    'tolerance': TOLERANCE,
    'seconds': round(time.perf_counter() - began),
    'device': 'cpu',
  }
  print(json.dumps(figures))
  if failed:
    sys.exit(1)


if __name__ == '__main__':
  main()
