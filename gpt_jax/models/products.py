"""Matrix products with a kernel; those of few rows on a CPU, where writing text spends its time, by code of our own.

One token a row is read at a time, so that a product takes as long as its kernel takes to come from memory. XLA's
products for CPUs do so for one row; from two on they pack the kernel first, at 2 to 2.5 times the time of one row, and
a batch, a draft's candidates and integers lose most of what they could win. products.cc reads each number of a kernel
once for eight rows. It is compiled by the machine's C++ compiler at first use and kept in the cache folder; without a
compiler XLA's products serve.

A row's result from it does not depend on the rows beside it, nor on the number of threads.
"""

from collections.abc import Callable
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
HANDLERS = ('by_input', 'by_output', 'by_output_int8', 'by_output_int4')
FEW = 32
"""Rows up to which XLA's products are slower."""


def dot(x: Float[Array, 'B I'], kernel: Float[Array, '_ _'], axis: int = 0) -> Float[Array, 'B O']:
  """x W in float32, where W is `kernel` [I, O], or [O, I] with axis 1; of no gradient, see `layers.affine`."""

  def general(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, kernel, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)

  if kernel.dtype != jnp.float32:
    return general(x, kernel)
  return few_rows(('by_input', 'by_output')[axis], kernel.shape[1 - axis], general, x, kernel)


def few_rows(
  handler: str, outputs: int, otherwise: Callable[..., jax.Array], x: Float[Array, 'B I'], *kernel: jax.Array
) -> Float[Array, 'B O']:
  """A product by a handler of products.cc, if x has few rows of float32 and it is for a CPU; else by `otherwise`.

  Args:
    handler: of HANDLERS.
    outputs: O.
    otherwise: of x and the kernel.
    x: the rows.
    *kernel: its arrays, as the handler takes them.
  """
  few = 0 < len(x) <= FEW and x.dtype == jnp.float32
  if not (few and jax.default_backend() == 'cpu' and compiled()):
    return otherwise(x, *kernel)
  shape = jax.ShapeDtypeStruct((len(x), outputs), jnp.float32)
  call = jax.ffi.ffi_call(f'gpt_jax_{handler}', shape, vmap_method='sequential')
  return jax.lax.platform_dependent(x, *kernel, cpu=call, default=otherwise)


@functools.cache
def compiled() -> bool:
  """Whether products.cc could be compiled, now or earlier, so that XLA knows its handlers; why not is logged once."""
  try:
    library = ctypes.CDLL(str(_library()))
  except (OSError, UserError, subprocess.CalledProcessError) as error:
    said = (getattr(error, 'stderr', None) or str(error)).strip().splitlines()
    reason = next((line for line in said if 'error' in line), *said[:1])
    logging.warning('Products of few rows are left to XLA, which is slower: %s', reason)
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
      command += [str(SOURCE), '-o', str(partial / 'products.so')]
      subprocess.run(command, check=True, capture_output=True, text=True)
  return target / 'products.so'


def _processor() -> str:
  """What it can do, where that can be known: a home folder may be shared by several machines."""
  path = pathlib.Path('/proc/cpuinfo')
  lines = path.read_text().splitlines() if path.exists() else []
  return next((line for line in lines if line.startswith(('flags', 'Features'))), platform.processor())
