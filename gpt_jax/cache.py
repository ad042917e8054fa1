"""The cache folder: what can be fetched or computed again."""

from collections.abc import Iterator
import contextlib
import hashlib
import os
import pathlib
import shutil
import tempfile

from gpt_jax.types import UserError


def folder() -> pathlib.Path:
  """$GPT_JAX_CACHE, or ~/.cache/gpt_jax."""
  path = pathlib.Path(os.environ.get('GPT_JAX_CACHE') or pathlib.Path.home() / '.cache' / 'gpt_jax').absolute()
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f'cache folder {path}: {error.strerror}; set GPT_JAX_CACHE to a folder that can be made') from error
  return path


def digest(path: pathlib.Path) -> str:
  """The sha256 of a file, in hexadecimal."""
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


@contextlib.contextmanager
def building(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """A new folder that becomes `target` when the block ends well, and is removed when it doesn't.

  So `target` is whole or absent. Of two processes that build the same target, the first to finish wins.
  """
  target.parent.mkdir(parents=True, exist_ok=True)
  partial = pathlib.Path(tempfile.mkdtemp(prefix=f'.{target.name}.', dir=target.parent))
  partial.chmod(0o755)
  try:
    yield partial
    try:
      partial.rename(target)
    except OSError:
      if not target.is_dir():
        raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)
