"""Text to token numbers and back: the tokenizers by name, on disk, and as a stream."""

from collections.abc import Iterable, Iterator, Sequence
import hashlib
import itertools
import json
import pathlib
from types import MappingProxyType
from typing import Protocol, SupportsIndex, runtime_checkable

from jaxtyping import Int32
import numpy as np

from gpt_jax import cache
from gpt_jax.data import bpe
from gpt_jax.data.conventions import SETTINGS, Conventions, Files
from gpt_jax.data.sources import documents
from gpt_jax.data.vocabularies import Bytes, Characters, SentencePiece
from gpt_jax.names import nearest
from gpt_jax.types import UserError


@runtime_checkable
class Tokenizer(Protocol):
  """What turns text into numbers below `vocab_size`, and back.

  Text is bytes, or str in which broken UTF-8 stands as surrogate escapes (bytes.decode('utf-8', 'surrogateescape')).
  `encode` never yields a special token: <|endoftext|> written in a document is ordinary text, not the end of it.
  """

  @property
  def vocab_size(self) -> int: ...

  @property
  def end_of_text(self) -> int | None:
    """Stands after every document; None where the vocabulary has no such token."""
    ...

  @property
  def conventions(self) -> Conventions:
    """What a model with this vocabulary expects around text."""
    ...

  def encode(self, text: str | bytes) -> Int32[np.ndarray, 'T']: ...

  def encode_batch(self, texts: Sequence[str | bytes]) -> list[Int32[np.ndarray, '_']]: ...

  def encode_special(self, text: str) -> Int32[np.ndarray, 'T']:
    """As `encode`, but the names of special tokens stand for them: for what a chat template wrote."""
    ...

  def decode_bytes(self, ids: Iterable[SupportsIndex]) -> bytes:
    """The exact bytes, where the vocabulary can say them: a token may be a part of a character."""
    ...

  def dump(self) -> dict[str, bytes]:
    """The plain files that say all, by name; but for bytes and characters, those of transformers."""
    ...


FILES = ('tokenizer.json', 'tokenizer.model', 'vocab.json', 'merges.txt', *SETTINGS)
"""All that a tokenizer may be read from."""

KINDS = ('bytes', 'chars', 'gpt2', 'gpt1', 'bpe', 'json', 'sentencepiece')


def tokenizer(spec: str, sources: Sequence[str] = (), held_out: float | int = 0.1) -> Tokenizer:
  """The tokenizer of a name.

  `bytes`; `chars` (all characters of `sources`, held-out text included, in order of code point); `gpt2`;
  `gpt1:FOLDER` (OpenAI's encoder_bpe_40000.json and vocab_40000.bpe); `bpe:SIZE` (trained on the training text of
  `sources`, and cached); `json:FILE` (any tokenizer.json); `sentencepiece:FILE`.
  """
  kind, _, argument = spec.partition(':')
  if kind == 'bytes':
    return Bytes()
  if kind == 'chars':
    splits = [documents(source, split, held_out) for source in sources for split in ('train', 'validation')]
    characters = set[str]().union(*itertools.chain.from_iterable(splits))
    if not characters:
      raise UserError('tokenizer chars: the sources have no text to take the characters from')
    return Characters(''.join(sorted(characters)))
  if kind == 'gpt2':
    return bpe.gpt2()
  if kind == 'gpt1':
    return bpe.gpt1(pathlib.Path(argument).expanduser())
  if kind == 'bpe':
    if not argument.isdecimal():
      raise UserError(f'tokenizer {spec!r}: bpe needs a vocabulary size, such as bpe:4096')
    return _trained(int(argument), sources, held_out)
  if kind in ('json', 'sentencepiece'):
    path = pathlib.Path(argument).expanduser()
    if not path.is_file():
      raise UserError(f'tokenizer {spec!r}: there is no file {path}')
    return (bpe.from_json if kind == 'json' else _sentencepiece)(path.read_bytes(), str(path))
  raise UserError(f'tokenizer {spec!r} is unknown; {nearest(kind, KINDS)}')


def _trained(size: int, sources: Sequence[str], held_out: float | int) -> Tokenizer:
  texts = [documents(source, 'train', held_out) for source in sources]
  key = json.dumps([size, [text.identity for text in texts]])
  folder = cache.folder() / 'tokenizers' / f'bpe-{size}-{hashlib.sha256(key.encode()).hexdigest()[:16]}'
  if not folder.is_dir():
    trained = bpe.train(itertools.chain.from_iterable(texts), size)
    with cache.building(folder) as partial:
      save(trained, partial)
  return load(folder)


def with_special(tokenizer: Tokenizer, names: Sequence[str]) -> Tokenizer:
  """The same with tokens of these names behind its own; `encode` never yields them, `encode_special` does.

  Raises:
    UserError: a vocabulary that takes no more tokens.
  """
  if not isinstance(tokenizer, bpe.Subwords):
    raise UserError(
      f'the tokenizer can not take the tokens {", ".join(names)}: take one of subwords, such as bpe:4096 or gpt2'
    )
  return tokenizer.with_special(names)


def _sentencepiece(content: bytes, name: str, files: Files = MappingProxyType({})) -> SentencePiece:
  try:
    return SentencePiece(content, files)
  except RuntimeError as error:
    raise UserError(f'{name}: not a SentencePiece model') from error


def save(tokenizer: Tokenizer, folder: pathlib.Path) -> None:
  """Writes the files of a tokenizer into a folder, for `load`."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, content in tokenizer.dump().items():
    partial = folder / f'{name}.partial'
    partial.write_bytes(content)
    partial.replace(folder / name)


def load(folder: pathlib.Path) -> Tokenizer:
  """The tokenizer of a folder, of `save`'s or transformers' making.

  Raises:
    UserError: there is none, or one of its files is broken.
  """
  return read({name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}, str(folder))


def read(files: Files, name: str) -> Tokenizer:
  """The tokenizer of some files, by their names; `name` is where they come from, for messages.

  Raises:
    UserError: there is none among them, or one is broken.
  """
  if 'tokenizer.json' in files:
    content, path = files['tokenizer.json'], f'{name}/tokenizer.json'
    try:
      state = json.loads(content)
    except ValueError as error:
      raise UserError(f'{path}: not JSON ({error})') from error
    kind = state.get('kind') if isinstance(state, dict) else None
    if kind == 'bytes':
      return Bytes()
    if kind == 'chars':
      return Characters(state['characters'])
    return bpe.from_json(content, path, files)
  if 'tokenizer.model' in files:
    return _sentencepiece(files['tokenizer.model'], f'{name}/tokenizer.model', files)
  if 'vocab.json' in files and 'merges.txt' in files:
    return bpe.from_pair(files['vocab.json'], files['merges.txt'], f'{name}/vocab.json or merges.txt', files)
  raise UserError(f'{name} has no tokenizer.json, tokenizer.model, or vocab.json and merges.txt')


def fingerprint(tokenizer: Tokenizer) -> str:
  """The sha256 of what `save` writes."""
  parts = (part for name, content in sorted(tokenizer.dump().items()) for part in (name.encode(), content))
  return hashlib.sha256(b'\0'.join(parts)).hexdigest()


def decode(tokenizer: Tokenizer, ids: Iterable[SupportsIndex]) -> str:
  """Text to show: bytes that are not UTF-8 become U+FFFD."""
  return tokenizer.decode_bytes(ids).decode('utf-8', 'replace')


def stream(tokenizer: Tokenizer, ids: Iterable[SupportsIndex]) -> Iterator[str]:
  """The text of tokens as they come: joined, it is their `decode`. A character in parts comes with its last token."""
  context: list[int] = []  # the tokens shown last: white space may depend on them
  fresh: list[int] = []
  for i in ids:
    fresh.append(int(i))
    text = decode(tokenizer, context + fresh)
    if not text.endswith('\ufffd'):
      yield text[len(decode(tokenizer, context)) :]
      context, fresh = fresh, []
  if fresh:
    yield decode(tokenizer, context + fresh)[len(decode(tokenizer, context)) :]
