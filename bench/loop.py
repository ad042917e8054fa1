"""What a run costs beyond its steps: the loop and its logs, data loading, and compilation as depth grows.

  python bench/loop.py [--quick]

loop     tokens per second of `training.run` (bar, metrics.jsonl, TensorBoard) over those of the bare jitted step
data     rows per second of the data pipeline over those the step takes
compile  seconds to compile the training step at 96 layers over those at 12, stacked and scanned
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.data import mixture
from gpt_jax.data.rows import Rows, Stream
from gpt_jax.models.families import FAMILIES
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.layers import Mlp
from gpt_jax.models.positions import Learned
from gpt_jax.objectives.likelihood import next_token_loss
from gpt_jax.sharding import Placement, make_mesh
from gpt_jax.training.loop import init_state, make_step
from gpt_jax.training.optimizers import FIELDS, make_optimizer
from gpt_jax.training.run import run

ROWS, CONTEXT = 16, 128


def model_of(num_layers, width=128):
  return LanguageModel(
    dataclasses.replace(
      FAMILIES['gpt2_small'],
      num_layers=num_layers,
      model_dim=width,
      num_heads=4,
      num_kv_heads=4,
      mlp=Mlp(4 * width),
      vocab_size=256,
      positions=Learned(CONTEXT),
    )
  )


def state_and_step(model):
  optimizer = make_optimizer(FIELDS, 1000)
  birth = lambda key: init_state(model.init(key, jnp.zeros((1, 8), jnp.int32)), optimizer)
  return birth, make_step(next_token_loss(model), optimizer, seed=0)


def rate_of_loop(source, num_steps):
  """Rows per second of the bare step and of a whole run, the run's by its own log."""
  model = model_of(3)
  birth, step = state_and_step(model)
  state = jax.jit(birth)(jax.random.key(0))
  state, _ = step(state, source(0))
  start = time.perf_counter()
  batch = source(0)
  for _ in range(num_steps):
    state, _ = step(state, batch)
  jax.block_until_ready(state)
  bare = ROWS * num_steps / (time.perf_counter() - start)
  config = {
    'num_steps': num_steps + 1,
    'seed': 0,
    'microbatches': 1,
    'optimizer': FIELDS,
    'log_every': 10,
    'eval_every': 0,
    'checkpoint_every': 0,
    'keep_checkpoints': 1,
  }
  with tempfile.TemporaryDirectory() as folder:
    run(
      pathlib.Path(folder) / 'run',
      config,
      init=lambda key: model.init(key, jnp.zeros((1, 8), jnp.int32)),
      loss_fn=next_token_loss(model),
      source=lambda index, state: [source(index)],
      placement=Placement(make_mesh({'data': -1})),
      tokens_per_step=lambda index: ROWS,
      flops_per_token=1.0,
    )
    lines = [json.loads(line) for line in (pathlib.Path(folder) / 'run' / 'metrics.jsonl').read_text().splitlines()]
  timed = [line for line in lines if 'seconds' in line]
  whole = ROWS * (timed[-1]['step'] - timed[0]['step']) / (timed[-1]['seconds'] - timed[0]['seconds'])
  return bare, whole


def rate_of_data(source, num_steps):
  start = time.perf_counter()
  for step in range(num_steps):
    source(step)
  return ROWS * num_steps / (time.perf_counter() - start)


def seconds_to_compile(num_layers):
  birth, step = state_and_step(model_of(num_layers, width=64))
  shapes = jax.eval_shape(birth, jax.random.key(0))
  tokens = jax.ShapeDtypeStruct((ROWS, CONTEXT + 1), jnp.int32)
  batch = {'tokens': tokens, 'weights': jax.ShapeDtypeStruct(tokens.shape, jnp.float32)}
  start = time.perf_counter()
  step.func.lower(shapes, batch, **step.keywords).compile()
  return time.perf_counter() - start


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--quick', action='store_true', help='fewer steps and rounds')
  options = parser.parse_args()
  num_steps, rounds = (60, 1) if options.quick else (200, 3)
  tokens = np.random.default_rng(0).integers(0, 256, 1_000_000).astype(np.uint16)
  rows = [Rows(Stream('random', tokens, np.zeros(1, np.int64), len(tokens)), CONTEXT)]
  source = mixture.batches(rows, [1.0], ROWS, seed=0)
  rates = [rate_of_loop(mixture.prefetched(source), num_steps) for _ in range(rounds)]
  bare, whole = statistics.median(rate for rate, _ in rates), statistics.median(rate for _, rate in rates)
  data = statistics.median(rate_of_data(source, num_steps) for _ in range(rounds))
  short, deep = (statistics.median(seconds_to_compile(layers) for _ in range(rounds)) for layers in (12, 96))
  print(f'{"":24} {"figure":>10} {"against":>10} {"ratio":>8}')
  print(f'{"loop, bare step, rows/s":24} {whole:10.1f} {bare:10.1f} {whole / bare:8.3f}')
  print(f'{"data, bare step, rows/s":24} {data:10.1f} {bare:10.1f} {data / bare:8.1f}')
  print(f'{"compile 96, 12 layers, s":24} {deep:10.2f} {short:10.2f} {deep / short:8.3f}')
  print(
    json.dumps(
      {
        'loop_over_bare_step': round(whole / bare, 4),
        'data_over_step': round(data / bare, 2),
        'compile_96_over_12_layers': round(deep / short, 3),
        'device': jax.devices()[0].device_kind,
      }
    )
  )


if __name__ == '__main__':
  main()
