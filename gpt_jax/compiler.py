"""What XLA is told before it compiles anything."""

import os

import jax

from gpt_jax import cache

SCHEDULE = '--xla_cpu_enable_concurrency_optimized_scheduler'
"""XLA's order of work for CPUs: made for parts that run at once, it gets the arrays of all of them ready. Without, a
training step takes as long and up to half the memory."""


def set_up() -> None:
  """Keeps compiled programs in the cache folder, and chooses the order of work unless XLA_FLAGS does.

  To be called before JAX's first computation, which reads XLA_FLAGS.

  Raises:
    UserError: the cache folder can't be made.
  """
  flags = os.environ.get('XLA_FLAGS', '')
  if SCHEDULE not in flags:
    os.environ['XLA_FLAGS'] = f'{flags} {SCHEDULE}=false'.strip()
  # A kept program costs no time to compile again, in this run or the next.
  jax.config.update('jax_compilation_cache_dir', str(cache.folder() / 'compiled'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
