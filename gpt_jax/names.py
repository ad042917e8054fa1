"""Names that a user writes, and the nearest one where a name is misspelt."""

from collections.abc import Iterable, Mapping
import difflib
from typing import TypeVar

from gpt_jax.types import UserError

T = TypeVar('T')


def nearest(name: str, names: Iterable[str]) -> str:
  """A hint of which of `names` was meant."""
  names = list(names)
  close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
  return f'did you mean {close[0]!r}?' if close else f'known: {", ".join(names)}'


def choose(field: str, name: str, table: Mapping[str, T]) -> T:
  """table[name], or a UserError that names the field."""
  if name not in table:
    raise UserError(f'{field} = {name!r} is unknown; {nearest(name, table)}')
  return table[name]
