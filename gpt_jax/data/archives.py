"""Opening archives that somebody else made."""

from collections.abc import Iterator, Sequence
import contextlib
import fnmatch
import gzip
import pathlib
import stat
import tarfile
from typing import IO
import zipfile
import zlib

from tqdm import tqdm

from gpt_jax.types import UserError

Entry = tuple[str, int, bool, IO[bytes] | None]
"""Name, size in bytes, is it a plain file, and its content (only read while it is the current entry)."""


def _tar_entries(path: pathlib.Path) -> Iterator[Entry]:
  with tarfile.open(path) as archive:
    for member in archive:
      yield member.name, member.size, member.isreg(), archive.extractfile(member) if member.isreg() else None


def _zip_entries(path: pathlib.Path) -> Iterator[Entry]:
  with zipfile.ZipFile(path) as archive:
    for member in archive.infolist():
      kind = stat.S_IFMT(member.external_attr >> 16)
      plain = not member.is_dir() and kind in (0, stat.S_IFREG)
      with archive.open(member) if plain else contextlib.nullcontext() as content:
        yield member.filename, member.file_size, plain, content


def _is_outside(name: str) -> bool:
  """Would this name be written outside the folder it is extracted to, on any system?"""
  posix, windows = pathlib.PurePosixPath(name), pathlib.PureWindowsPath(name)
  return posix.is_absolute() or bool(windows.anchor) or '..' in posix.parts or '..' in windows.parts


def extract(path: pathlib.Path, members: Sequence[str], into: pathlib.Path) -> None:
  """Writes the plain files of a tar or zip archive whose names match a glob of `members` below the folder `into`.

  Links and devices are never made, nothing is written outside `into`, no owner or mode is taken over.
  """
  entries = _zip_entries(path) if zipfile.is_zipfile(path) else _tar_entries(path)
  found = 0
  try:
    with tqdm(desc=f'extract {path.name}', unit='B', unit_scale=True, disable=None, leave=False) as bar:
      for name, size, plain, content in entries:
        if _is_outside(name):
          raise UserError(f'{path}: refused, the archive would write outside its folder ({name!r}); delete it')
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in members):
          continue
        if not plain or content is None:
          raise UserError(f'{path}: refused, {name!r} is a link, folder or device where a file is expected; delete it')
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open('xb') as file:
          while block := content.read(1 << 20):
            file.write(block)
            bar.update(len(block))
        if target.stat().st_size != size:
          raise UserError(f'{path}: {name!r} is cut short; delete the archive and fetch it again')
        found += 1
  except (tarfile.TarError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, EOFError, FileExistsError) as error:
    reason = str(error).split('\n', 1)[0]
    raise UserError(f'{path}: a broken archive ({reason}); delete it and fetch it again') from error
  except OSError as error:
    raise UserError(f'{path}: could not be extracted to {into} ({error})') from error
  if not found:
    raise UserError(f'{path}: no file in it matches {" or ".join(members)}; it is another package or version')
