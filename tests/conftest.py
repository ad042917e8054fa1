"""Eight CPU devices, quick compilation, kept between runs, and runtime checks of every shape annotation."""

import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Compiling is most of the tests' time, and small models need no optimising.
FLAGS = '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
FLAGS += ' --xla_cpu_enable_concurrency_optimized_scheduler=false'  # as compiler.set_up would, for one key of the cache
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {FLAGS}'

import jax  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402
import pytest  # noqa: E402

import tests.typechecker  # noqa: E402, F401  the hook finds it loaded

ROOT = pathlib.Path(__file__).parents[1]

jax.config.update('jax_compilation_cache_dir', str(ROOT / '.cache' / 'jax'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)

install_import_hook('gpt_jax', 'tests.typechecker.check').__enter__()


@pytest.fixture(scope='module', autouse=True)
def forgotten():
  """Compiled programs go with their module: each maps memory, and a process may map but 65,530 pieces of it."""
  yield
  jax.clear_caches()
