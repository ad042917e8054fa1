"""How much of the hardware's arithmetic a run uses."""

import re
import time

import jax
import jax.numpy as jnp

# Dense bfloat16 FLOP/s of one jax device, by jax's name of its kind; from the makers' data sheets. A TPU v2, v3 or v7
# chip is two devices.
PEAKS = (
  (r'H100|H200|GH200', 989e12),
  (r'A100', 312e12),
  (r'V100', 125e12),  # float16: it has no bfloat16
  (r'\bL4\b', 121e12),
  (r'\bT4\b', 65e12),  # float16
  (r'TPU v2', 22.5e12),
  (r'TPU v3', 61.5e12),
  (r'TPU v4 lite', 138e12),
  (r'TPU v4', 275e12),
  (r'TPU v5 ?(e|lite)', 197e12),
  (r'TPU v5', 459e12),
  (r'TPU v6', 918e12),
  (r'TPU ?v?7', 1153.5e12),
)


def peak_flops() -> tuple[float, str]:
  """FLOP/s that all devices have together, and where the number is from.

  CPU devices share their host, so its matrix product is measured once, in float32.
  """
  kind, count = jax.devices()[0].device_kind, jax.device_count()
  for pattern, peak in PEAKS:
    if re.search(pattern, kind):
      return peak * count, f'{kind}, dense bfloat16 by its data sheet'
  return _measured() * (1 if jax.default_backend() == 'cpu' else count), 'measured float32 matmul'


def _measured(size: int = 1536, seconds: float = 0.3) -> float:
  """The best of a few square matrix products."""
  matrix = jnp.ones((size, size), jnp.float32)
  multiply = jax.jit(jnp.matmul)
  multiply(matrix, matrix).block_until_ready()
  best, end = float('inf'), time.perf_counter() + seconds
  while (start := time.perf_counter()) < end:
    multiply(matrix, matrix).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best


def utilisation(tokens_per_second: float, flops_per_token: float | int) -> dict[str, float | str]:
  """Model FLOP/s over peak FLOP/s, by PaLM's convention (arXiv 2204.02311, appendix B).

  `flops_per_token` is 6 N + 12 L D T: forward and backward of N parameters and of attention, no recomputation.
  """
  peak, source = peak_flops()
  return {'mfu_palm': tokens_per_second * flops_per_token / peak, 'peak_flops': peak, 'peak_source': source}
