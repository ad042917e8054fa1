"""Archives: what is asked for comes out, mischief does not."""

import io
import tarfile
import zipfile

import pytest

from gpt_jax.data import archives
from gpt_jax.types import UserError


def make_tar(path, *members):
  with tarfile.open(path, 'w:gz') as archive:
    for name, content, kind in members:
      member = tarfile.TarInfo(name)
      member.type, member.size = kind, len(content)
      member.linkname = '/etc/passwd'
      archive.addfile(member, io.BytesIO(content))
  return path


def make_zip(path, *members):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, content, mode in members:
      member = zipfile.ZipInfo(name)
      member.external_attr = mode << 16
      archive.writestr(member, content)
  return path


def files(folder):
  return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_only_matching_files_come_out(tmp_path):
  wanted = [('p-1/texts/a.txt', b'A' * 3000000), ('p-1/texts/b.txt', b'B')]
  other = ('p-1/setup.py', b'print()')
  tar = make_tar(tmp_path / 'a.tar.gz', *((*pair, tarfile.REGTYPE) for pair in [*wanted, other]))
  zipped = make_zip(tmp_path / 'a.whl', *((*pair, 0o100644) for pair in [*wanted, other]))
  for archive in tar, zipped:
    into = tmp_path / f'{archive.name}-out'
    archives.extract(archive, ['*/texts/*.txt'], into)
    assert files(into) == dict(wanted)


@pytest.mark.parametrize('name', ['../evil.txt', 'a/../../evil.txt', '/tmp/evil.txt', 'C:\\evil.txt', '..\\evil.txt'])
def test_nothing_is_written_outside(tmp_path, name):
  tar = make_tar(tmp_path / 'a.tar.gz', (name, b'evil', tarfile.REGTYPE))
  zipped = make_zip(tmp_path / 'a.whl', (name, b'evil', 0o100644))
  for archive in tar, zipped:
    into = tmp_path / 'deep' / 'out'
    with pytest.raises(UserError, match='refused, the archive would write outside its folder'):
      archives.extract(archive, ['*'], into)
    assert not [path for path in tmp_path.rglob('*evil*')]


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
  tar = make_tar(tmp_path / 'a.tar.gz', ('a/link.txt', b'', kind))
  with pytest.raises(UserError, match='is a link, folder or device'):
    archives.extract(tar, ['*.txt'], tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_a_link_in_a_zip_is_refused(tmp_path):
  zipped = make_zip(tmp_path / 'a.whl', ('a/link.txt', b'/etc/passwd', 0o120777))
  with pytest.raises(UserError, match='is a link, folder or device'):
    archives.extract(zipped, ['*.txt'], tmp_path / 'out')


def test_broken_archives_say_so(tmp_path):
  whole = make_tar(tmp_path / 'a.tar.gz', ('a/b.txt', bytes(range(256)) * 500, tarfile.REGTYPE))
  cut = tmp_path / 'cut.tar.gz'
  cut.write_bytes(whole.read_bytes()[:300])
  nonsense = tmp_path / 'nonsense.whl'
  nonsense.write_bytes(b'PK? not at all')
  twice = make_tar(tmp_path / 'twice.tar.gz', ('a.txt', b'1', tarfile.REGTYPE), ('a.txt', b'2', tarfile.REGTYPE))
  for archive in cut, nonsense, twice:
    with pytest.raises(UserError, match=f'{archive.name}: a broken archive .* fetch it again'):
      archives.extract(archive, ['*'], tmp_path / f'out-{archive.name}')


def test_an_archive_without_the_files_says_so(tmp_path):
  zipped = make_zip(tmp_path / 'a.whl', ('a/b.txt', b'', 0))
  with pytest.raises(UserError, match=r'no file in it matches \*\.json'):
    archives.extract(zipped, ['*.json'], tmp_path / 'out')
