"""Random layouts with all that real ones have: packed documents, padding, prefixes, blanks."""

import jax.numpy as jnp
import numpy as np

from gpt_jax.types import Layout


def random_layout(seed: int, rows: int = 3, length: int = 11, *, packed: bool = True, prefix: bool = True) -> Layout:
  """Rows of documents whose positions start again, some with a prefix read both ways, and padding at the end."""
  rng = np.random.default_rng(seed)
  order = np.tile(np.arange(length), (rows, 1))
  segment, position = np.zeros_like(order), np.zeros_like(order)
  block, read_both_ways = np.zeros_like(order), np.zeros(order.shape, bool)
  for row in range(rows):
    start = number = 0
    end = length - int(rng.integers(0, length // 3))
    while start < end:
      stop = min(end, start + int(rng.integers(1, length))) if packed else end
      number += 1
      segment[row, start:stop] = number
      position[row, start:stop] = np.arange(stop - start)
      block[row, start:stop] = rng.integers(0, 3, stop - start)
      read_both_ways[row, start : start + int(rng.integers(0, stop - start + 1))] = prefix
      start = stop
  return Layout(*map(jnp.asarray, (order, position, block, segment, read_both_ways)))
