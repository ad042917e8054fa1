"""Tokenizers that need no merges: bytes, characters, and SentencePiece models."""

from collections.abc import Iterable, Sequence
import json
import re
from types import MappingProxyType
from typing import SupportsIndex

from jaxtyping import Int32
import numpy as np
import sentencepiece

from gpt_jax.data.conventions import SETTINGS, Conventions, Files, conventions
from gpt_jax.data.text import to_bytes, to_text
from gpt_jax.types import UserError

Ids = Int32[np.ndarray, '_']


class Bytes:
  """The 256 bytes of UTF-8, and 256 for the end of a text (which decodes to nothing)."""

  vocab_size = 257
  end_of_text = 256
  conventions = Conventions(ends=(256,))

  def encode(self, text: str | bytes) -> Ids:
    return np.frombuffer(to_bytes(text), np.uint8).astype(np.int32)

  def encode_batch(self, texts: Sequence[str | bytes]) -> list[Ids]:
    return [self.encode(text) for text in texts]

  def encode_special(self, text: str) -> Ids:
    return self.encode(text)

  def decode_bytes(self, ids: Iterable[SupportsIndex]) -> bytes:
    return bytes(i for i in map(int, ids) if i != self.end_of_text)

  def dump(self) -> dict[str, bytes]:
    return {'tokenizer.json': json.dumps({'kind': 'bytes'}).encode()}


class Characters:
  """One number for each of the given characters, in their order; no end of text, as in char-rnn and nanoGPT."""

  end_of_text = None
  conventions = Conventions()

  def __init__(self, characters: str):
    self.characters = characters
    self.vocab_size = len(characters)
    points = np.array([ord(character) for character in characters], np.int64)
    self._ids = np.full(points.max(initial=0) + 2, -1, np.int32)  # the last entry: all that lies above
    self._ids[points] = np.arange(len(points))

  def encode(self, text: str | bytes) -> Ids:
    """Raises UserError on a character outside the vocabulary."""
    text = to_text(text)
    points = np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), np.uint32)
    ids = self._ids[np.minimum(points, len(self._ids) - 1)]
    if (ids < 0).any():
      character = text[int((ids < 0).argmax())]
      raise UserError(
        f'character {character!r} (U+{ord(character):04X}) is not among the {self.vocab_size} characters of the '
        'vocabulary; leave it out, or choose the tokenizer bytes or gpt2'
      )
    return ids

  def encode_batch(self, texts: Sequence[str | bytes]) -> list[Ids]:
    return [self.encode(text) for text in texts]

  def encode_special(self, text: str) -> Ids:
    return self.encode(text)

  def decode_bytes(self, ids: Iterable[SupportsIndex]) -> bytes:
    return to_bytes(''.join(self.characters[int(i)] for i in ids))

  def dump(self) -> dict[str, bytes]:
    return {'tokenizer.json': json.dumps({'kind': 'chars', 'characters': self.characters}).encode()}


class SentencePiece:
  """A SentencePiece model, as LLaMA and GLM have; its own normalisation decides what of a text survives."""

  def __init__(self, model: bytes, files: Files = MappingProxyType({})):
    self._model = model
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    self.vocab_size = self._processor.vocab_size()
    bos, eos = self._processor.bos_id(), self._processor.eos_id()
    self.end_of_text = eos if eos >= 0 else None
    pieces = {self._processor.id_to_piece(i): i for i in range(self.vocab_size)}
    self.conventions = conventions(files, pieces, [bos] if bos >= 0 else [], self.end_of_text)
    self._files = {name: content for name, content in files.items() if name in SETTINGS}
    self._control = {piece: i for piece, i in pieces.items() if self._processor.is_control(i)}

  def encode(self, text: str | bytes) -> Ids:
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str | bytes]) -> list[Ids]:
    clean = [to_bytes(text).decode('utf-8', 'replace') for text in texts]
    return [np.array(ids, np.int32) for ids in self._processor.encode(clean)]

  def decode_bytes(self, ids: Iterable[SupportsIndex]) -> bytes:
    return self._processor.decode([int(i) for i in ids]).encode()

  def encode_special(self, text: str) -> Ids:
    if not self._control:
      return self.encode(text)
    parts = re.split(f'({"|".join(map(re.escape, self._control))})', text)
    ids = [[self._control[part]] if part in self._control else self.encode(part) for part in parts if part]
    return np.concatenate([np.zeros(0, np.int32), *ids]).astype(np.int32)

  def dump(self) -> dict[str, bytes]:
    return {'tokenizer.model': self._model, **self._files}
