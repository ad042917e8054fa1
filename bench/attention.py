"""Time and memory of attention over the length of a row, of every pattern and way to compute it.

  python bench/attention.py [--quick]

Forward, and forward and backward, of one row of 4 heads of 64 in float32: dense with all scores at once (`whole`: of
every query and every key; `dense`: as the plain kernel cuts rows in halves), in chunks, and the sparse patterns as they
are computed here. Peak memory is what XLA allots besides inputs. Growth is the exponent of a power law fitted over
lengths. On a GPU, in bfloat16, cuDNN's kernel as well.
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import compiler
from gpt_jax.models.attention import Banded, Dense, Fixed, Strided
from gpt_jax.models.masks import Causal, SameSegment
from gpt_jax.models.softmax import softmax_attention
from gpt_jax.types import left_to_right

HEADS, WIDTH = 4, 64
compiler.set_up()
GPU = jax.default_backend() == 'gpu'
LENGTHS, QUICK = (1024, 2048, 4096, 8192, 16384, 32768), (1024, 2048, 4096)
LONGEST_PLAIN = 8192
"""Tokens of a row of which all scores at once still fit."""


def whole(query, key, value, layout):
  return softmax_attention(query, key, value, (Causal() & SameSegment())(layout, layout))[0]


def pattern(pattern, kernel, query, key, value, layout):
  return pattern(query, key, value, layout, layout, kernel=kernel)


def forms():
  """By name, attention of queries, keys, values and a layout."""
  of = functools.partial
  patterns = {
    'banded256': Banded(256),
    'banded32': Banded(32),
    'strided128': Strided(128),
    'strided128_split': Strided(128, split=True),
    'fixed128': Fixed(128),
    'fixed128_8': Fixed(128, 8),
    'fixed128_split': Fixed(128, split=True),
  }
  return {
    'whole': whole,
    'dense': of(pattern, Dense(), 'plain'),
    'chunked': of(pattern, Dense(), 'chunked'),
    **({'cudnn': of(pattern, Dense(), 'cudnn'), 'cudnn_banded256': of(pattern, Banded(256), 'cudnn')} if GPU else {}),
    **{name: of(pattern, value, 'auto') for name, value in patterns.items()},
  }


def compiled(attend, length):
  """Forward, and forward and backward, as programs of the length, with what they are given."""
  dtype = jnp.bfloat16 if GPU else jnp.float32
  keys = jax.random.split(jax.random.key(length), 3)
  heads = [jax.random.normal(key, (1, length, HEADS, WIDTH), dtype) for key in keys]
  layout = left_to_right(jnp.zeros((1, length), int))
  loss = lambda *given: jnp.sum(jnp.sin(attend(*given).astype(jnp.float32)))
  programs = jax.jit(attend), jax.jit(jax.grad(loss, (0, 1, 2)))
  return [program.lower(*heads, layout).compile() for program in programs], (*heads, layout)


def seconds(program, given):
  """Of one call after another of its kind."""
  jax.block_until_ready(program(*given))
  start = time.perf_counter()
  jax.block_until_ready(program(*given))
  return time.perf_counter() - start


def growth(values):
  """The exponent of length in a power law through {length: value}."""
  return float(np.polyfit(np.log(list(values)), np.log(list(values.values())), 1)[0])


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--quick', action='store_true', help='rows of up to 4,096 tokens, one round')
  quick = parser.parse_args().quick
  lengths, rounds = (QUICK, 1) if quick else (LENGTHS, 5)
  kinds = ('forward', 'training')
  times, memory = {}, {}  # of a form and a kind, by length
  for length in lengths:
    programs = {
      name: compiled(attend, length)
      for name, attend in forms().items()
      if length <= LONGEST_PLAIN or name not in {'whole', 'dense'}
    }
    found = {(name, kind): [] for name in programs for kind in kinds}
    for _ in range(rounds):
      for name, (pair, given) in programs.items():
        for kind, program in zip(kinds, pair, strict=True):
          found[name, kind].append(seconds(program, given))
    for name, (pair, _) in programs.items():
      shown = []
      for kind, program in zip(kinds, pair, strict=True):
        taken, kept = statistics.median(found[name, kind]), program.memory_analysis().temp_size_in_bytes
        times.setdefault((name, kind), {})[length], memory.setdefault((name, kind), {})[length] = taken, kept
        shown.append(f'{kind} {1e3 * taken:.1f} ms {kept / 2**20:.0f} MiB')
      print(f'{length:6} {name:17} {", ".join(shown)}', flush=True)
  print('growth with length   forward: time, memory   training: time, memory')
  exponents = {}
  for name in forms():
    exponents[name] = {
      f'{kind}_{what}': round(growth(table[name, kind]), 2)
      for kind in kinds
      for what, table in (('time', times), ('memory', memory))
    }
    print(f'{name:17}' + ''.join(f'{exponent:12.2f}' for exponent in exponents[name].values()))
  at = max(length for length in lengths if length <= LONGEST_PLAIN)
  figures = {}
  for kind in kinds:
    speed_up = lambda name, base, kind=kind: round(times[base, kind][at] / times[name, kind][at], 2)
    title = f'{at // 1024}k_{kind}_vs'
    for name in ('banded256', 'strided128', 'fixed128'):
      figures |= {
        f'{name}_{title}_dense': speed_up(name, 'whole'),
        f'{name}_{title}_chunked': speed_up(name, 'chunked'),
      }
    figures |= {
      f'chunked_{title}_dense': speed_up('chunked', 'whole'),
      f'halved_{title}_dense': speed_up('dense', 'whole'),
    }
  print(json.dumps({**figures, 'growth': exponents, 'device': jax.devices()[0].device_kind}))


if __name__ == '__main__':
  main()
