"""Memory and time of the next-token loss at GPT-2's vocabulary: all logits at once, or in chunks.

  python bench/loss_memory.py [--quick]

Loss and gradients for hidden states [B, 1024, 768] and an unembedding of 50,257 rows. "plain" is what one writes first:
log-softmax of all logits, differentiated by jax. Memory is XLA's own figure for temporary buffers.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp

from gpt_jax.models.heads import Unembedding
from gpt_jax.objectives.likelihood import next_token_loss

LENGTH, WIDTH, VOCABULARY = 1024, 768, 50_257


class Head:
  """A language model that has no body: its hidden states are given."""

  def apply(self, params, tokens, layout, **_):
    return params['hidden'], Unembedding(params['table']), None


def chunked(chunk):
  loss = next_token_loss(Head(), chunk=chunk)
  return lambda params, batch: loss(params, batch, jax.random.key(0))[0].total


def plain(params, batch):
  logits = params['hidden'] @ params['table'].T
  targets = batch['tokens'][:, 1:, None]
  return -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits), targets, axis=-1)[..., 0] * batch['weights'][:, 1:])


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--quick', action='store_true', help='one row and one round')
  options = parser.parse_args()
  rows, rounds = (1, 1) if options.quick else (4, 5)
  keys = jax.random.split(jax.random.key(0), 3)
  params = {
    'hidden': jax.random.normal(keys[0], (rows, LENGTH, WIDTH)),
    'table': 0.02 * jax.random.normal(keys[1], (VOCABULARY, WIDTH)),
  }
  tokens = jax.random.randint(keys[2], (rows, LENGTH + 1), 0, VOCABULARY)
  batch = {'tokens': tokens, 'weights': jnp.ones(tokens.shape)}
  forms = {'plain': plain, 'chunk=1024': chunked(None), 'chunk=256': chunked(256), 'chunk=64': chunked(64)}
  compiled = {name: jax.jit(jax.value_and_grad(form)).lower(params, batch).compile() for name, form in forms.items()}
  seconds = {name: [] for name in forms}
  values = {}
  for _ in range(rounds):
    for name, program in compiled.items():
      start = time.perf_counter()
      values[name] = jax.block_until_ready(program(params, batch))[0]
      seconds[name].append(time.perf_counter() - start)
  print(f'{"form":<12} {"temporary MiB":>14} {"ms":>8} {"loss":>12}')
  figures = {}
  for name, program in compiled.items():
    memory = program.memory_analysis().temp_size_in_bytes / 2**20
    milliseconds = statistics.median(seconds[name]) * 1e3
    print(f'{name:<12} {memory:14.0f} {milliseconds:8.0f} {float(values[name]) / rows / LENGTH:12.6f}')
    figures |= {f'{name}_temporary_mib': round(memory, 1), f'{name}_ms': round(milliseconds, 1)}
  figures['memory_plain_over_chunk_64'] = round(figures['plain_temporary_mib'] / figures['chunk=64_temporary_mib'], 2)
  figures['device'] = jax.devices()[0].device_kind
  print(json.dumps(figures))


if __name__ == '__main__':
  main()
