"""What is computed on a CPU by code of our own, native.cc, where XLA's is slower; see `products`, `softmax` and `held`.

It is compiled by the machine's C++ compiler at first use and kept in the cache folder; without a compiler XLA serves.
What comes out of it for one row or query does not depend on those beside it, nor on the number of threads.
"""

from collections.abc import Callable, Sequence
import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shlex
import shutil
import subprocess

from absl import logging
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gpt_jax import cache
from gpt_jax.types import UserError

SOURCE = pathlib.Path(__file__).with_suffix('.cc')
HANDLERS = ('by_input', 'by_output', 'by_output_int8', 'by_output_int4', 'attend', 'held')


def call(
  handler: str, shapes: Sequence[tuple[int, ...]], otherwise: Callable[..., list[jax.Array]], *given: jax.Array
) -> list[jax.Array]:
  """What a handler of native.cc gives, on a CPU; else what `otherwise` does. It has no gradient.

  Args:
    handler: of HANDLERS.
    shapes: of the results, which are of float32.
    otherwise: of what is given.
    *given: arrays, as the handler takes them.
  """
  if not (jax.default_backend() == 'cpu' and compiled()):
    return otherwise(*given)
  results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  ours = jax.ffi.ffi_call(f'gpt_jax_{handler}', results, vmap_method='sequential')
  found: list[jax.Array] = jax.lax.platform_dependent(*given, cpu=ours, default=otherwise)
  return found


def held(x: Float[Array, '...']) -> Float[Array, '...']:
  """The same float32 numbers, of no gradient, worked out once on a CPU: XLA would do so again wherever it reads."""
  return call('held', [x.shape], lambda x: [x], x)[0]


@functools.cache
def compiled() -> bool:
  """Whether native.cc could be compiled, now or earlier, so that XLA knows its handlers; why not is logged once."""
  try:
    library = ctypes.CDLL(str(_library()))
  except (OSError, UserError, subprocess.CalledProcessError) as error:
    said = (getattr(error, 'stderr', None) or str(error)).strip().splitlines()
    reason = next((line for line in said if 'error' in line), *said[:1])
    logging.warning('Products and attention of few rows are left to XLA, which is slower: %s', reason)
    return False
  for handler in HANDLERS:
    capsule = jax.ffi.pycapsule(getattr(library, handler))
    jax.ffi.register_ffi_target(f'gpt_jax_{handler}', capsule, platform='cpu')
  return True


def _library() -> pathlib.Path:
  """The compiled source, of this version, compiler and processor.

  Raises:
    OSError: there is no compiler.
    UserError: there is no cache folder.
    subprocess.CalledProcessError: it does not compile.
  """
  compiler = shlex.split(os.environ.get('CXX', '')) or [shutil.which('g++') or shutil.which('clang++') or 'c++']
  command = [*compiler, '-O3', '-march=native', '-std=c++17', '-fPIC', '-shared', '-w', '-I', jax.ffi.include_dir()]
  made_of = (SOURCE.read_text(), command, jax.__version__, _processor())
  target = cache.folder() / 'native' / hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
  if not target.is_dir():
    with cache.building(target) as partial:
      command += [str(SOURCE), '-o', str(partial / 'native.so')]
      subprocess.run(command, check=True, capture_output=True, text=True)
  return target / 'native.so'


def _processor() -> str:
  """What it can do, where that can be known: a home folder may be shared by several machines."""
  path = pathlib.Path('/proc/cpuinfo')
  lines = path.read_text().splitlines() if path.exists() else []
  return next((line for line in lines if line.startswith(('flags', 'Features'))), platform.processor())
