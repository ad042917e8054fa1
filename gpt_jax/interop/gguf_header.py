"""The head of a GGUF file: its metadata, and where its tensors lie.

The library's own reader believes every count in the file, so that one wrong bit sends it round for hours, and it makes
an array of each token of a vocabulary. Here each number is held against the bytes that are there.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import math
import pathlib
from typing import Any, BinaryIO

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
import numpy as np

from gpt_jax.types import UserError

SCALARS = {
  GGUFValueType.UINT8: '<u1', GGUFValueType.INT8: '<i1', GGUFValueType.UINT16: '<u2', GGUFValueType.INT16: '<i2',
  GGUFValueType.UINT32: '<u4', GGUFValueType.INT32: '<i4', GGUFValueType.UINT64: '<u8', GGUFValueType.INT64: '<i8',
  GGUFValueType.FLOAT32: '<f4', GGUFValueType.FLOAT64: '<f8', GGUFValueType.BOOL: '?',
}  # fmt: skip

# Far beyond any vocabulary or text, but what can still be held: the bytes of tensors are no text by mistake.
MOST_ITEMS, MOST_TEXT, MOST_NAME = 2**22, 2**25, 256
LEAST_VALUE, LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8
"""Bytes of the shortest entry of metadata and of the table of tensors."""


@dataclasses.dataclass(frozen=True)
class Stored:
  """A tensor in a file."""

  kind: GGMLQuantizationType
  shape: tuple[int, ...]
  """As numpy has it: numbers of the last axis are neighbours."""
  start: int
  """The byte of the file where it begins."""

  @property
  def row(self) -> int:
    """Bytes of one row, which is made of whole blocks."""
    block, size = GGML_QUANT_SIZES[self.kind]
    return self.shape[-1] // block * size

  @property
  def size(self) -> int:
    """Bytes."""
    return math.prod(self.shape[:-1]) * self.row


@dataclasses.dataclass(frozen=True)
class Header:
  """All of a file but the numbers of its tensors."""

  metadata: Mapping[str, Any]
  """Plain values, strings, and lists of them."""
  tensors: Mapping[str, Stored]


def read_header(path: pathlib.Path) -> Header:
  """The header of a file, of which every tensor is known to lie inside it.

  Raises:
    UserError: no such file, or not a whole GGUF file of version 2 or 3.
  """
  try:
    with path.open('rb') as file:
      return _header(_Source(file, path.stat().st_size))
  except OSError as error:
    raise UserError(f'{path} can not be read ({error.strerror})') from None
  except ValueError as error:
    raise UserError(f'{path}: not a whole GGUF file ({error}); fetch it again') from None


class _Source:
  """Bytes of a file in their order, none beyond its end."""

  def __init__(self, file: BinaryIO, size: int):
    self.file, self.size, self.at = file, size, 0

  def take(self, count: int) -> bytes:
    if count > self.size - self.at:
      raise ValueError(f'byte {self.at:,}: {count:,} bytes should follow, but there are {self.size - self.at:,}')
    self.at += count
    return self.file.read(count)

  def whole(self, width: int) -> int:
    return int.from_bytes(self.take(width), 'little')

  def text(self) -> str:
    length = self.whole(8)
    if length > MOST_TEXT:
      raise ValueError(f'byte {self.at:,}: a text of {length:,} bytes')
    return self.take(length).decode()

  def name(self) -> str:
    """A name, which may stand in a message."""
    length = self.whole(8)
    name = self.take(length).decode() if length <= MOST_NAME else ''
    if not name or not name.isprintable():
      raise ValueError(f'byte {self.at:,}: here should be a name')
    return name

  def value(self) -> Any:
    kind = GGUFValueType(self.whole(4))
    if kind is GGUFValueType.STRING:
      return self.text()
    if kind is not GGUFValueType.ARRAY:
      return self.numbers(kind, 1)[0]
    kind, count = GGUFValueType(self.whole(4)), self.whole(8)
    if count > MOST_ITEMS:
      raise ValueError(f'byte {self.at:,}: a list of {count:,} values')
    if kind is GGUFValueType.STRING:
      return [self.text() for _ in range(count)]
    if kind is GGUFValueType.ARRAY:
      raise ValueError(f'byte {self.at:,}: a list of lists, which no model has')
    return self.numbers(kind, count)

  def numbers(self, kind: GGUFValueType, count: int) -> list:
    dtype = np.dtype(SCALARS[kind])
    return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()


def _header(source: _Source) -> Header:
  if source.take(4) != b'GGUF':
    raise ValueError('it does not begin with GGUF')
  version = source.whole(4)
  if version not in (2, 3):
    raise ValueError(f'version {version} is not 2 or 3, of little-endian machines')
  num_tensors, num_values = source.whole(8), source.whole(8)
  if num_tensors * LEAST_TENSOR + num_values * LEAST_VALUE > source.size:
    raise ValueError(f'it has no room for {num_tensors:,} tensors and {num_values:,} values')
  metadata = dict(_once((source.name(), source.value()) for _ in range(num_values)))
  table = dict(_once((source.name(), _entry(source)) for _ in range(num_tensors)))
  return Header(metadata, dict(_placed(table, source, metadata.get('general.alignment', 32))))


def _once(pairs: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
  seen = set()
  for name, value in pairs:
    if name in seen:
      raise ValueError(f'{name} stands there twice')
    seen.add(name)
    yield name, value


def _entry(source: _Source) -> Stored:
  """A tensor, its start still counted from where tensors begin."""
  rank = source.whole(4)
  if not 1 <= rank <= 4:
    raise ValueError(f'byte {source.at:,}: a tensor of {rank} axes')
  shape = tuple(source.whole(8) for _ in range(rank))[::-1]
  return Stored(GGMLQuantizationType(source.whole(4)), shape, source.whole(8))


def _placed(table: Mapping[str, Stored], source: _Source, alignment: Any) -> Iterator[tuple[str, Stored]]:
  """Tensors follow one another, each from a multiple of the alignment, as ggml itself demands."""
  if alignment not in [2**i for i in range(3, 21)]:
    raise ValueError(f'general.alignment = {alignment!r:.40}')
  padded = lambda at: -(-at // alignment) * alignment
  begin = padded(source.at)
  start = 0
  for name, stored in table.items():
    if not math.prod(stored.shape) or stored.shape[-1] % GGML_QUANT_SIZES[stored.kind][0]:
      raise ValueError(f'tensor {name} can not be of shape {stored.shape} in {stored.kind.name}')
    if stored.start != start:
      raise ValueError(f'tensor {name} starts at {stored.start:,}, not {start:,}')
    if begin + start + stored.size > source.size:
      raise ValueError(f'tensor {name} of shape {stored.shape} is cut off')
    yield name, dataclasses.replace(stored, start=begin + start)
    start = padded(start + stored.size)
