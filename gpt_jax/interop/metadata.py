"""Values of a GGUF file's metadata, each checked to be what its reader needs: text may be str, or bytes of UTF-8."""

from collections.abc import Iterable, Mapping
from typing import Any

from gpt_jax.types import UserError

Metadata = Mapping[str, Any]

BROKEN = 'the file is broken: convert the model again'


def text(metadata: Metadata, key: str) -> str | None:
  return decoded(key, metadata[key]) if key in metadata else None


def texts(metadata: Metadata, key: str) -> list[str]:
  return [decoded(f'{key}[{place}]', entry) for place, entry in enumerate(entries(metadata, key))]


def entries(metadata: Metadata, key: str, length: int | None = None) -> list[Any]:
  """The list of a key, which must be there, with an entry for each of `length` tokens."""
  if key not in metadata:
    raise UserError(f'{key} is missing; {BROKEN}')
  value = metadata[key]
  if isinstance(value, str | bytes) or not isinstance(value, Iterable):
    raise UserError(f'{key} is not a list; {BROKEN}')
  found = list(value)
  if length is not None and len(found) != length:
    raise UserError(f'{key} has {len(found)} entries for {length} tokens; {BROKEN}')
  return found


def flag(metadata: Metadata, key: str, default: bool) -> bool:
  value = metadata.get(key, default)
  if not isinstance(value, bool):
    raise UserError(f'{key} = {value!r} is neither true nor false; {BROKEN}')
  return value


def index(metadata: Metadata, key: str, size: int, default: int | None = None) -> int | None:
  """The number of one of `size` tokens."""
  number = metadata.get(key, default)
  if number is not None and not (isinstance(number, int) and 0 <= number < size):
    raise UserError(f'{key} = {number!r} is not the number of one of the {size} tokens; {BROKEN}')
  return number


def decoded(name: str, value: Any) -> str:
  """`name` is for messages."""
  try:
    return (value.encode() if isinstance(value, str) else value).decode()
  except (AttributeError, UnicodeError):
    raise UserError(f'{name} = {value!r} is not text in UTF-8; {BROKEN}') from None
