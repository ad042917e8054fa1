"""TensorFlow's checkpoints of version 2, named tensor bundles: an index, and the numbers of all tensors in one file.

NAME.index is a table as LevelDB has it (doc/table_format.md there): blocks of names in order, a block that lists those
blocks, and a footer. What stands under a name is a message of tensorflow/core/protobuf/tensor_bundle.proto: which part
of NAME.data-00000-of-00001 is the tensor. Lengths are checked before they are used, and no block is read twice, so that
a broken or hostile index costs no more than one that is whole.
"""

from collections.abc import Iterator
import functools
import math
import pathlib
from typing import NamedTuple

import google_crc32c
import numpy as np

from gpt_jax.interop.forms import Shape, Tensor
from gpt_jax.interop.tensors import Read
from gpt_jax.types import UserError

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
TRAILER = 5
"""After a block: how it is compressed, one byte, and a checksum."""
LARGEST = 1 << 20
"""Bytes of an index; that of the largest GPT-2 is a fiftieth."""
LONGEST = 1 << 10
"""Bytes of a name. It repeats the one before it for two bytes: without a bound, names could fill the memory."""
PIECE = 1 << 20
"""Bytes whose checksum is taken at once."""
FLOAT32 = 1
"""Of types.proto."""


class Part(NamedTuple):
  """Where a tensor lies."""

  shape: Shape
  offset: int
  size: int
  checksum: int


def tensors(prefix: pathlib.Path) -> dict[str, Read]:
  """What reads each tensor of a checkpoint, by name; all checksums are compared at once.

  Args:
    prefix: what the names of its files have in common: folder/model.ckpt.

  Raises:
    UserError: a file is missing or broken, or holds what we don't read: compressed blocks, several data files, or
      numbers other than float32.
  """
  index, data = (prefix.with_name(prefix.name + end) for end in ('.index', '.data-00000-of-00001'))
  for path in (index, data):
    if not path.is_file():
      raise UserError(f'{prefix.parent} has no {path.name}; fetch it')
  try:
    if index.stat().st_size > LARGEST:
      raise ValueError(f'it is longer than {LARGEST} bytes')
    parts = _parts(index.read_bytes())
  except UserError as error:
    raise UserError(f'{index}: {error}') from None
  except (OSError, ValueError) as error:
    raise UserError(f'{index}: not the index of a checkpoint of TensorFlow ({error}); fetch it again') from None
  try:
    numbers = np.memmap(data, np.uint8, 'r')
  except (OSError, ValueError) as error:
    raise UserError(f'{data} can not be read ({error}); fetch it again') from None
  for name, part in parts.items():
    if part.offset + part.size > len(numbers):
      raise UserError(f'{data} ends before tensor {name}; fetch it again')
    if _masked(numbers[part.offset : part.offset + part.size]) != part.checksum:
      raise UserError(f'{data}: tensor {name} does not have its checksum; fetch it again')
  return {name: functools.partial(_read, numbers, part) for name, part in parts.items()}


def _read(numbers: np.ndarray, part: Part) -> Tensor:
  return np.frombuffer(numbers, '<f4', part.size // 4, part.offset).reshape(part.shape)


def _masked(data: bytes | np.ndarray) -> int:
  """Their checksum: CRC-32C turned and shifted, so that data may hold its own."""
  value = 0
  for start in range(0, len(data), PIECE):
    value = google_crc32c.extend(value, bytes(data[start : start + PIECE]))
  return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


# ---- the messages ---------------------------------------------------------------------------------------------------


def _parts(table: bytes) -> dict[str, Part]:
  pairs = _pairs(table)
  key, header = next(pairs, (b'', b''))
  fields = _fields(header)
  if key or not fields:
    raise ValueError('it has no header')
  shards, big_endian = _number(fields, 0x08), _number(fields, 0x10)
  if shards != 1 or big_endian:
    kind = 'big-endian numbers' if big_endian else f'{shards} data files'
    raise UserError(f'a checkpoint of {kind} is not supported: save it again with tf.compat.v1.train.Saver()')
  parts = {}
  for key, value in pairs:
    name = str(key, 'utf-8')
    if not name.isprintable():
      raise ValueError(f'{name!r} is no name')
    parts[name] = _part(name, _fields(value))
  return parts


def _part(name: str, fields: dict[int, list]) -> Part:
  """Of a BundleEntryProto."""
  dtype = _number(fields, 0x08)
  if dtype != FLOAT32 or 0x3A in fields:
    kind = 'a tensor in slices' if 0x3A in fields else f'type {dtype} of types.proto'
    raise UserError(f'{name!r} is {kind}, which is not supported: save the weights alone, whole and in float32')
  axes = [axis for message in fields.get(0x12, []) for axis in _fields(message).get(0x12, [])]
  shape = tuple(_number(_fields(axis), 0x08) for axis in axes[:8])
  checksum = int.from_bytes(fields.get(0x35, [b''])[-1], 'little')
  part = Part(shape, _number(fields, 0x20), _number(fields, 0x28), checksum)
  if len(axes) > len(shape) or 4 * math.prod(shape) != part.size:
    raise ValueError(f'{name!r} has another size than its shape')
  return part


def _number(fields: dict[int, list], tag: int) -> int:
  """What is not written is 0."""
  return fields.get(tag, [0])[-1]


def _fields(message: bytes) -> dict[int, list]:
  """A message of protobuf: all values by tag, which is eight times the number of the field and how it is written."""
  fields: dict[int, list] = {}
  at = 0
  while at < len(message):
    tag, at = _varint(message, at)
    if tag & 7 == 0:
      value, at = _varint(message, at)
      fields.setdefault(tag, []).append(value)
      continue
    if tag & 7 == 2:
      length, at = _varint(message, at)
    elif tag & 7 in (1, 5):
      length = 8 if tag & 7 == 1 else 4
    else:
      raise ValueError('a message has a field of no known kind')
    if at + length > len(message):
      raise ValueError('a message ends within a field')
    fields.setdefault(tag, []).append(message[at : at + length])
    at += length
  return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
  """A number, seven bits a byte, the lowest first; and where it ends."""
  value = 0
  for place, byte in enumerate(data[at : at + 10]):
    value |= (byte & 127) << 7 * place
    if byte < 128:
      return value, at + place + 1
  raise ValueError('a number has no end')


# ---- the table ------------------------------------------------------------------------------------------------------


def _pairs(table: bytes) -> Iterator[tuple[bytes, bytes]]:
  """Names and what stands under them, in order."""
  footer = table[-FOOTER:]
  if len(footer) < FOOTER or int.from_bytes(footer[-8:], 'little') != MAGIC:
    raise ValueError('it does not end as a table does')
  at = 0
  for _ in range(2):  # past a block that TensorFlow leaves empty
    _, at = _varint(footer, at)
  last, end = None, 0
  for _, handle in _entries(_block(table, *_handle(footer[at:]))):
    offset, size = _handle(handle)
    if offset < end:
      raise ValueError('its blocks overlap')
    end = offset + size
    for name, value in _entries(_block(table, offset, size)):
      if last is not None and name <= last:
        raise ValueError('its names are not in order')
      last = name
      yield name, value


def _handle(data: bytes) -> tuple[int, int]:
  """Offset and size of a block."""
  offset, at = _varint(data, 0)
  return offset, _varint(data, at)[0]


def _block(table: bytes, offset: int, size: int) -> bytes:
  end = offset + size
  if end + TRAILER > len(table) - FOOTER:
    raise ValueError('a block lies outside')
  if _masked(table[offset : end + 1]) != int.from_bytes(table[end + 1 : end + TRAILER], 'little'):
    raise ValueError('a block does not have its checksum')
  if table[end]:
    raise UserError('its blocks are compressed, which is not supported: save it again with tf.compat.v1.train.Saver()')
  return table[offset:end]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
  """Keys and values; a key is written as what differs from the one before it."""
  end = len(block) - 4 - 4 * int.from_bytes(block[-4:], 'little')  # there: which keys are whole, for a binary search
  if end < 0:
    raise ValueError('a block is too short')
  at, key = 0, b''
  while at < end:
    shared, at = _varint(block, at)
    fresh, at = _varint(block, at)
    length, at = _varint(block, at)
    if shared > len(key) or shared + fresh > LONGEST or at + fresh + length > end:
      raise ValueError('a block has an entry of an impossible length')
    key = key[:shared] + block[at : at + fresh]
    yield key, block[at + fresh : at + fresh + length]
    at += fresh + length
