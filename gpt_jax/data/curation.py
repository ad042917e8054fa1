"""Hygiene of prompts that people sent, as InstructGPT's (Ouyang et al. 2022, section 3.2 and appendix A.1)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import hashlib
from typing import Any

from gpt_jax.data.sources import Record


def at_most_per_user(records: Iterable[Record], limit: int = 200, user: str = 'user') -> list[Record]:
  """The first `limit` records of each user; a record without the field is a user of its own."""
  counts: dict[Any, int] = {}
  kept = []
  for place, record in records:
    name = record.get(user)
    counts[name] = counts.get(name, 0) + 1
    if name is None or counts[name] <= limit:
      kept.append((place, record))
  return kept


def split_by_user(
  records: Iterable[Record], held_out: float = 0.1, seed: int = 0, user: str = 'user'
) -> tuple[list[Record], list[Record]]:
  """Training and held-out records: all of a user's are in one of them, wherever they stand and whoever else is there.

  Records without the field are spread by what they say.
  """
  parts: tuple[list[Record], list[Record]] = ([], [])
  for place, record in records:
    name = record.get(user)
    key = repr(sorted(record.items(), key=str)) if name is None else str(name)
    number = int.from_bytes(hashlib.sha256(f'{seed}:{key}'.encode()).digest()[:8], 'big') / 2**64
    parts[number < held_out].append((place, record))
  return parts


def without_shared_beginnings(records: Sequence[Record], length: int = 100, field: str = 'prompt') -> list[Record]:
  """The first of all records whose texts begin with the same `length` characters; shorter texts must be equal."""
  known: set[str] = set()
  kept = []
  for place, record in records:
    beginning = _text(record.get(field, ''))[:length]
    if beginning not in known:
      kept.append((place, record))
    known.add(beginning)
  return kept


def of_length(
  records: Iterable[Record], length: Callable[[Mapping[str, Any]], int], least: int = 1, most: int | None = None
) -> tuple[list[Record], dict[str, int]]:
  """The records that are neither too short nor too long, and how many were kept, too short and too long."""
  kept: list[Record] = []
  counts = {'kept': 0, 'too short': 0, 'too long': 0}
  for place, record in records:
    size = length(record)
    kind = 'too short' if size < least else 'too long' if most is not None and size > most else 'kept'
    counts[kind] += 1
    if kind == 'kept':
      kept.append((place, record))
  return kept, counts


def without_personal(records: Iterable[Record], fields: Sequence[str] = ('prompt', 'answer', 'text')) -> list[Record]:
  """The records with names of people's accounts, addresses and numbers replaced, such as {{EMAIL}}, by scrubadub.

  Raises:
    ImportError: scrubadub is not installed.
  """
  import scrubadub

  scrubber = scrubadub.Scrubber()
  clean = lambda value: scrubber.clean(value) if isinstance(value, str) else value
  return [
    (place, {name: clean(value) if name in fields else value for name, value in record.items()})
    for place, record in records
  ]


def _text(value: Any) -> str:
  """Of a prompt that is a text or a list of messages."""
  return value if isinstance(value, str) else '\n'.join(str(turn.get('content')) for turn in value)
