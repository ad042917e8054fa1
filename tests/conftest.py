"""Eight CPU devices, a compilation cache that outlives the run, and runtime checks of every shape annotation."""

import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'

import jax  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]

jax.config.update('jax_compilation_cache_dir', str(ROOT / '.cache' / 'jax'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)

install_import_hook('gpt_jax', 'beartype.beartype').__enter__()
