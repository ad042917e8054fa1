"""What quantised weights cost and give: a ladder from float32 to four bits, of SmolLM2-135M (asset:smollm2).

  python bench/quantization.py [--quick]

Bytes are of all parameters, and of the kernels that are quantised; embeddings stay float32. Tokens per second are of
greedy decoding, all rows together, from prompts of 16 tokens; each round goes through all rungs, and medians count.
Perplexity is of the first tokens of Emma (asset:gutenberg) in rows of 1,024; the divergence is KL(float32 || rung) of
the distribution of each next token, its mean over the same places, in nats.
"""

import argparse
import dataclasses
import functools
import json
import math
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.data import assets, tokenizers
from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.interop.pretrained import pretrained
from gpt_jax.models.heads import LanguageModel, parameter_shapes
from gpt_jax.models.quantization import Int4, Int8, quantize
from gpt_jax.models.transformer import unstack

RUNGS = {
  'float32': {},
  'bfloat16': {'dtype': 'bfloat16'},
  'int8': {'quantization': Int8()},
  'int8, group 32': {'quantization': Int8(32)},
  'int4, group 32': {'quantization': Int4()},
}
CONTEXT = 1024


def rung(base, params, fields):
  """A model and its parameters; bfloat16 has kernels of two bytes too, as the rung is of what is stored."""
  model = LanguageModel(dataclasses.replace(base.config, **fields))
  if 'quantization' in fields:
    return model, quantize(params, model.config.quantization, parameter_shapes(model))
  narrow = lambda path, leaf: leaf.astype(model.config.dtype) if path[-1].key == 'kernel' else leaf
  return model, jax.tree_util.tree_map_with_path(narrow, params)


def num_bytes(params, kernels_alone=False):
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return sum(leaf.nbytes for path, leaf in leaves if not kernels_alone or any(key.key == 'kernel' for key in path))


def speed(model, params, rows, count):
  """Tokens per second of greedy decoding, without the reading of the prompts: by two lengths, of which one is short."""
  prompts = [list(range(100 + row, 116 + row)) for row in range(rows)]

  def seconds(number):
    start = time.perf_counter()
    generate(model, params, prompts, max_new_tokens=number, sampling=Sampling(temperature=0), context=CONTEXT)
    return time.perf_counter() - start

  short = min(seconds(1) for _ in range(2))
  return rows * count / (seconds(1 + count) - short)


@functools.partial(jax.jit, static_argnums=0)
def log_probabilities(model, params, tokens):
  return jax.nn.log_softmax(model.apply(params, tokens)[0])


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--quick', action='store_true', help='fewer tokens and one round')
  quick = parser.parse_args().quick
  rounds, count, length = (1, 16, 256) if quick else (3, 24, 2048)
  (file,) = assets.asset('smollm2').rglob('*.gguf')
  source = pretrained(str(file))
  base, params = source.load()
  tokenizer = tokenizers.read(source.files, 'smollm2')
  (emma,) = assets.asset('gutenberg').rglob('austen-emma.txt')
  ids = tokenizer.encode(emma.read_text()[: 8 * length])[: length + 1]
  pieces = [ids[start : start + CONTEXT + 1] for start in range(0, length, CONTEXT)]
  built = {name: rung(base, params, fields) for name, fields in RUNGS.items()}
  mebibytes = lambda params: {'mebibytes': num_bytes(params) / 2**20, 'kernels': num_bytes(params, True) / 2**20}
  table = {name: mebibytes(held) for name, (_, held) in built.items()}
  totals = {name: [0.0, 0.0] for name in built}
  for piece in pieces:
    exact = None
    for name, (model, held) in built.items():
      found = log_probabilities(model, held, jnp.asarray(piece[None, :-1]))[0]
      exact = found if exact is None else exact
      totals[name][0] -= float(jnp.sum(found[np.arange(len(piece) - 1), piece[1:]]))
      totals[name][1] += float(jnp.sum(jnp.exp(exact) * (exact - found)))
  for name, (loss, divergence) in totals.items():
    table[name] |= {'perplexity': math.exp(loss / length), 'divergence': divergence / length}
  apart = lambda model, held: (model.copy(config=dataclasses.replace(model.config, stacked=False)), unstack(held))
  built = {name: apart(*pair) for name, pair in built.items()}
  for rows in (1, 8):
    found = {name: [] for name in built}
    for number in range(rounds + 1):
      for name, (model, held) in built.items():
        rate = speed(model, held, rows, count)
        if number:  # the first compiles
          found[name].append(rate)
    for name, rates in found.items():
      table[name][f'tokens_per_second_{rows}'] = statistics.median(rates)
  columns = ('mebibytes', 'kernels', 'tokens_per_second_1', 'tokens_per_second_8', 'perplexity', 'divergence')
  print(f'{"":32}{"MiB":>8}{"kernels":>9}{"tok/s, 1":>10}{"tok/s, 8":>10}{"perplexity":>12}{"KL, nats":>10}')
  for name, row in table.items():
    size, kernels, one, eight, perplexity, divergence = (row[column] for column in columns)
    print(f'{name:32}{size:8.1f}{kernels:9.1f}{one:10.1f}{eight:10.1f}{perplexity:12.3f}{divergence:10.5f}')
  print(json.dumps({'rounds': rounds, 'tokens': length, 'rungs': table}))


if __name__ == '__main__':
  main()
