"""A tiny bigram model, its batches and a run of it; as a program: `python toy_run.py DIR` runs slowly, to be killed."""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.sharding import Placement, make_mesh
from gpt_jax.training.run import run
from gpt_jax.types import Mean, UserError

VOCABULARY, WIDTH, ROWS, LENGTH = 24, 16, 8, 12


def config(**fields):
  optimizer = {'learning_rate': 1e-2, 'warmup_steps': 5, 'ema': 0.9, **fields.pop('optimizer', {})}
  every = {'log_every': 4, 'eval_every': 10, 'checkpoint_every': 5, 'keep_checkpoints': 2}
  numbers = {'num_steps': 40, 'seed': 3, 'microbatches': 1}
  return {**numbers, 'optimizer': optimizer, 'mesh': {'data': -1}, **every, **fields}


def init(key):
  table, head = jax.random.split(key)
  return {
    'embed': {'embedding': jax.random.normal(table, (VOCABULARY, WIDTH))},
    'head': {'kernel': 0.1 * jax.random.normal(head, (WIDTH, VOCABULARY))},
  }


def loss_fn(params, batch, rng):
  hidden = params['embed']['embedding'][batch['tokens'][:, :-1]]
  hidden = hidden * jax.random.bernoulli(rng, 0.9, hidden.shape)
  logprobs = jax.nn.log_softmax(hidden @ params['head']['kernel'])
  loss = -jnp.take_along_axis(logprobs, batch['tokens'][:, 1:, None], -1)[..., 0]
  weights = batch['weights'][:, 1:]
  return Mean((loss * weights).sum(), weights.sum()), {}


def batch_of(index):
  """Ragged: a row counts from none of its tokens to all."""
  generator = np.random.default_rng(index)
  tokens = np.cumsum(generator.integers(1, 3, (ROWS, LENGTH)), 1) % VOCABULARY
  weights = np.arange(LENGTH) < generator.integers(0, LENGTH + 1, (ROWS, 1))
  return {'tokens': tokens.astype(np.int32), 'weights': weights.astype(np.float32)}


def source(index, state):
  del state
  return [batch_of(index)]


def slow_source(index, state):
  time.sleep(0.05)
  return source(index, state)


@jax.jit
def validation(params):
  return loss_fn(params, jax.tree.map(jnp.asarray, batch_of(10**6)), jax.random.key(0))[0].value


def toy(workdir, fields=None, *, source=source, devices=None, **arguments):
  fields = fields or config()
  placement = Placement(make_mesh(fields['mesh'], devices))

  arguments = {
    'init': init,
    'loss_fn': loss_fn,
    'evaluations': {'validation': lambda params: {'loss': validation(params)}},
    'describe_batch': lambda index: f'rows {index * ROWS}..{index * ROWS + ROWS - 1}',
    'tokens_per_step': lambda index: ROWS * LENGTH,
    'flops_per_token': 12.0 * VOCABULARY * WIDTH,
    **arguments,
  }
  return run(workdir, fields, source=source, placement=placement, **arguments)


if __name__ == '__main__':
  try:
    toy(sys.argv[1], source=slow_source)
  except UserError as error:
    sys.exit(f'error: {error}')
