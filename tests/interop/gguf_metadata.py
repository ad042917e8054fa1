"""The metadata at the head of a GGUF file, read without the library that takes minutes for a large vocabulary."""

import pathlib
import struct
from typing import Any, BinaryIO

NUMBERS = {
  0: 'B', 1: 'b', 2: 'H', 3: 'h', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q', 11: 'q', 12: 'd',
}  # fmt: skip
TEXT, LIST = 8, 9


def metadata(path: pathlib.Path) -> dict[str, Any]:
  with path.open('rb') as file:
    magic, _, _, count = struct.unpack('<4sIQQ', file.read(24))
    assert magic == b'GGUF'
    return {_text(file).decode(): _value(file, _number(file, 'I')) for _ in range(count)}


def _value(file: BinaryIO, kind: int) -> Any:
  if kind == TEXT:
    return _text(file)
  if kind != LIST:
    return _number(file, NUMBERS[kind])
  kind, length = _number(file, 'I'), _number(file, 'Q')
  if kind in NUMBERS:
    layout = f'<{length}{NUMBERS[kind]}'
    return list(struct.unpack(layout, file.read(struct.calcsize(layout))))
  return [_value(file, kind) for _ in range(length)]


def _text(file: BinaryIO) -> bytes:
  return file.read(_number(file, 'Q'))


def _number(file: BinaryIO, kind: str) -> Any:
  return struct.unpack(f'<{kind}', file.read(struct.calcsize(kind)))[0]
