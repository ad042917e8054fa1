"""What a step needs by formulas: no program is compiled, so any cluster will do, and it takes no time.

Memory is of what must be there at once; XLA's own schedule has more or less. See `compiled` for its figures.
"""

from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from gpt_jax.models.flops import SCORES, parts
from gpt_jax.models.layers import GatedMlp
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.planning.roofline import Exchange, Figures, merged
from gpt_jax.planning.topologies import Topology
from gpt_jax.sharding import AXES, mesh_shape
from gpt_jax.training.program import device_bytes

WIDTH = 2
"""Bytes of a number in computation: bfloat16."""


def abstract_mesh(sizes: dict[str, int], cluster: Topology) -> AbstractMesh:
  """A mesh of devices that are not there."""
  return AbstractMesh(mesh_shape(sizes, cluster.devices_count), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def kernel_flops(config: TransformerConfig, length: int, kernels: dict[Any, str]) -> float:
  """FLOPs a token of attention's own kernels, of which a compiled program does not say.

  Of two products forward, a flash attention of two passes backward does seven (splash), of one pass five (cuDNN); half
  a block of 512 keys beyond those that are seen is weighed too. `kernels`: of the patterns by which one they go.
  """
  products = {'splash': 7, 'cudnn': 5}
  total = 0.0
  for pattern in config.attention:
    if kernels[pattern] in products:
      keys = min(pattern.keys_seen(length, causal=True) + 256, length)
      one = 2.0 * config.num_heads * config.head_width * keys * config.periods
      total += one * (2 + 2 * (config.remat is not None) + products[kernels[pattern]])
  return total


def estimate(
  config: TransformerConfig,
  state: Any,
  mesh: AbstractMesh,
  cluster: Topology,
  kernels: dict[Any, str],
  *,
  rows: int,
  length: int,
  microbatches: int = 1,
  chunk: int | None = None,
) -> Figures:
  """The figures of a step; `state` is its shapes, each with its sharding on `mesh`."""
  sizes = dict(mesh.shape)
  spread, tensor = sizes['data'] * sizes['fsdp'], sizes['tensor']
  tokens = rows * length / (spread * sizes['sequence'])  # of a step, of a device; all heads' part of them `tensor`
  at_once = tokens / microbatches
  wide, layers = config.model_dim, config.num_layers
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  table = config.vocab_size * wide
  tables = table * (1 if config.tie_embeddings else 2)
  each = (parameters - tables) / layers / tensor  # of a layer, as it is gathered

  hidden = config.mlp.hidden * (2 if isinstance(config.mlp, GatedMlp) else 1) / tensor
  heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_width / tensor
  kept = {
    'full': wide * WIDTH / len(config.attention),
    'dots': wide * WIDTH + 4 * (heads + 2 * wide + hidden),  # sums are kept in float32
    None: WIDTH * (6 * wide + 2 * heads + 2 * hidden + config.mlp.hidden / tensor),
  }[config.remat]
  working = WIDTH * at_once * (6 * wide + 2 * heads + 3 * hidden)
  scored = 0.0 if set(kernels.values()) <= {'splash', 'cudnn', 'chunked'} else at_once * length * config.num_heads
  vocabulary = table / (tensor if config.vocab_size % tensor == 0 else 1)
  logits = 8 * at_once / length * (chunk or length) * vocabulary / wide
  born, gradients = device_bytes(state), device_bytes(state.params)
  gathered = (each * len(config.attention) + vocabulary) * (WIDTH + 4)
  peak = born + gradients + layers * at_once * kept + working + 6 * scored / tensor + logits + gathered

  per_token = sum(part.needed + part.recomputed for name, part in parts(config, length).items() if name != SCORES)
  scores = parts(config, length)[SCORES]
  plain = 0.0 if scored == 0 and 'chunked' not in kernels.values() else scores.needed + scores.recomputed
  products, of_kernels = (tokens * one / tensor for one in (per_token + plain, kernel_flops(config, length, kernels)))
  passes = 3 + (config.remat == 'full')
  through = WIDTH * (4 * wide + 2 * heads + 2 * hidden + config.mlp.hidden / tensor) * passes
  read = microbatches * 2 * WIDTH * passes * each * layers + tokens * layers * through + 7 * gradients

  whole = WIDTH * (each * layers + vocabulary)
  passed = WIDTH * tokens * wide * layers
  places = cluster.places(sizes)
  found = []
  for kind, axis, count, moved in (
    ('all-gather', 'fsdp', 2 * microbatches, whole),
    ('reduce-scatter', 'fsdp', microbatches, 2 * whole),
    ('all-reduce', 'data', 1, 4 * parameters / (sizes['fsdp'] * tensor)),
    ('all-reduce', 'tensor', 4 + (config.remat == 'full'), passed),
    ('all-gather', 'sequence', 2 + (config.remat == 'full'), 2 * passed * config.num_kv_heads / config.num_heads),
  ):
    number = sizes[axis]
    if number > 1:
      sent = count * moved * (number - 1) / number * (2 if kind == 'all-reduce' else 1)
      found.append(Exchange(kind, number, count, sent, sent / cluster.rate(places[axis])))
  capacity = cluster.chip.memory / cluster.chip.devices
  return Figures('formulas', born, gradients, peak, capacity, products, of_kernels, read, merged(found))
