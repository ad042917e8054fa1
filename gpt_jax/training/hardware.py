"""What chips can do at most, and how much of it a run uses."""

from collections.abc import Callable
import dataclasses
import os
import re
import time

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Chip:
  """A chip by its maker's data sheet; all bytes and FLOPs are of one chip, rates are a second's."""

  kind: str
  """What is found in jax's name of its kind (`device_kind`), as a regular expression."""
  flops: float
  """Dense, in bfloat16; of those that have none, in float16."""
  memory: float
  bandwidth: float
  """Of memory."""
  link: float = 0.0
  """One way: of a TPU, of one of its links; of a GPU, of all of them to the others of its node. 0: there is none."""
  network: float = 0.0
  """One way, of a GPU to other nodes."""
  axes: int = 0
  """Of the torus that a TPU's links make; each has a link both ways."""
  wraps: int = 1
  """An axis of a multiple of so many TPUs is a ring, a shorter one a line."""
  devices: int = 1
  """Of jax, that one chip is."""


# Sources. TPUs: Google Cloud's page of each version (system architecture; "bidirectional" there counts both ways of a
# link). GPUs: NVIDIA's data sheets, the SXM form; the network of a DGX of its time (HDR or NDR InfiniBand, one adapter
# a GPU); of those without NVLink, PCIe. The first that is found in a kind's name decides.
CHIPS: dict[str, Chip] = {
  'h200': Chip(r'H200', 989e12, 141e9, 4.8e12, link=450e9, network=50e9),
  'h100': Chip(r'H100|GH200', 989e12, 80e9, 3.35e12, link=450e9, network=50e9),
  'a100_40g': Chip(r'A100.*40GB', 312e12, 40e9, 1.555e12, link=300e9, network=25e9),
  'a100': Chip(r'A100', 312e12, 80e9, 2.039e12, link=300e9, network=25e9),
  'v100': Chip(r'V100', 125e12, 16e9, 0.9e12, link=150e9, network=12.5e9),
  'l4': Chip(r'\bL4\b', 121e12, 24e9, 0.3e12, link=32e9),
  't4': Chip(r'\bT4\b', 65e12, 16e9, 0.32e12, link=16e9),
  'v2': Chip(r'TPU v2', 45e12, 16 * 2**30, 0.7e12, devices=2),
  'v3': Chip(r'TPU v3', 123e12, 32 * 2**30, 0.9e12, devices=2),
  'v4i': Chip(r'TPU v4 lite', 138e12, 8 * 2**30, 0.614e12),
  'v4': Chip(r'TPU v4', 275e12, 32 * 2**30, 1.228e12, link=50e9, axes=3, wraps=4),
  'v5e': Chip(r'TPU v5 ?(e|lite)', 197e12, 16 * 2**30, 0.819e12, link=50e9, axes=2, wraps=16),
  'v5p': Chip(r'TPU v5', 459e12, 95 * 2**30, 2.765e12, link=100e9, axes=3, wraps=4),
  'v6e': Chip(r'TPU v6', 918e12, 32 * 2**30, 1.64e12, link=100e9, axes=2, wraps=16),
  'tpu7x': Chip(r'TPU ?v?7', 2307e12, 192 * 2**30, 7.38e12, link=100e9, axes=3, wraps=4, devices=2),
}


def chip_of(kind: str) -> Chip | None:
  """The chip that jax calls so; None: it is not in the table."""
  return next((chip for chip in CHIPS.values() if re.search(chip.kind, kind)), None)


def device_memory() -> tuple[float, str]:
  """Bytes that one device of this machine has, and where the number is from; CPU devices have alike parts of all."""
  device = jax.local_devices()[0]
  limit = (device.memory_stats() or {}).get('bytes_limit')
  if limit:
    return float(limit), 'as the device says'
  chip = chip_of(device.device_kind)
  if chip is not None:
    return chip.memory / chip.devices, f'{device.device_kind}, by its data sheet'
  whole = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return whole / jax.local_device_count(), 'the memory of this machine'


def peak_flops() -> tuple[float, str]:
  """FLOP/s that all devices have together, and where the number is from.

  CPU devices share their host, so its matrix product is measured once, in float32.
  """
  multiply = jax.jit(jnp.matmul)
  return _peak('flops', 'dense bfloat16', 'float32 matmul', multiply, 1536, 2 * 1536**3)


def peak_bandwidth() -> tuple[float, str]:
  """Bytes a second that all devices read from memory together, and where the number is from, as `peak_flops`.

  On a CPU it is that of adding two large arrays, which are read while a third is written.
  """
  return _peak('bandwidth', 'memory', 'float32 sum of arrays', jax.jit(jnp.add), 4096, 3 * 4 * 4096**2)


def _peak(
  field: str, of: str, measured: str, function: Callable[..., jax.Array], size: int, amount: int
) -> tuple[float, str]:
  kind, count = jax.devices()[0].device_kind, jax.device_count()
  chip = chip_of(kind)
  if chip is not None:
    return getattr(chip, field) / chip.devices * count, f'{kind}, {of} by its data sheet'
  best = _best_time(function, jnp.ones((size, size), jnp.float32))
  return amount / best * (1 if jax.default_backend() == 'cpu' else count), f'measured {measured}'


def _best_time(function: Callable[..., jax.Array], array: jax.Array, seconds: float = 0.3) -> float:
  """Of a few calls of a function of two arrays."""
  function(array, array).block_until_ready()
  best, end = float('inf'), time.perf_counter() + seconds
  while (start := time.perf_counter()) < end:
    function(array, array).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return best


def utilisation(
  tokens_per_second: float, flops_per_token: float | int, causal_flops_per_token: float | int | None = None
) -> dict[str, float | str]:
  """Model FLOP/s over peak FLOP/s (MFU).

  `mfu_palm` is by PaLM's convention (arXiv 2204.02311, appendix B): `flops_per_token` is 6 N + 12 L D T, forward and
  backward of N parameters and of attention, no recomputation. `mfu_causal` counts of attention only the keys that a
  query may see, where that number is given.
  """
  peak, source = peak_flops()
  found: dict[str, float | str] = {'mfu_palm': tokens_per_second * flops_per_token / peak}
  if causal_flops_per_token is not None:
    found['mfu_causal'] = tokens_per_second * causal_flops_per_token / peak
  return {**found, 'peak_flops': peak, 'peak_source': source}


def bandwidth_utilisation(steps_per_second: float, bytes_per_step: float | int) -> dict[str, float | str]:
  """Bytes that decoding must read over those that memory could give (model bandwidth utilisation, MBU).

  `bytes_per_step`: of the parameters, read once for all rows, and of the cache of every row.
  """
  peak, source = peak_bandwidth()
  return {
    'mbu': steps_per_second * bytes_per_step / peak, 'peak_bandwidth': peak, 'bandwidth_source': source,
  }  # fmt: skip
