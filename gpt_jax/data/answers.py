"""Texts of which a part is to be said and the rest only read, as rows: prompts with their answers, conversations."""

from collections.abc import Sequence

from jaxtyping import Integer
import numpy as np

from gpt_jax.data.rows import texts_apart
from gpt_jax.types import Batch, UserError

Taught = tuple[Sequence[int], Sequence[bool]]
"""The tokens of a text, and for each whether it is to be predicted."""


def answered(prompt: Sequence[int], answer: Sequence[int]) -> Taught:
  """A prompt that is read, and the answer that is to be said."""
  return [*prompt, *answer], [False] * len(prompt) + [True] * len(answer)


class Answers:
  """Rows of one text each, or of as many as fit (packed), which then do not see one another; padding behind them.

  Each text has its own segment and positions from 0. Its first token follows from nothing, so it is not predicted.
  Packed, texts go in their order to the first row that has room: a row more or less changes what stands beside what,
  and no gradient.

  Args:
    texts: of which source.
    context: tokens that a row is read for; it holds one more. What is longer is cut, `cut` counts those; what has
      nothing to be predicted in what is left of it has no place, `dropped` counts those.
    packed: several to a row.

  Raises:
    UserError: there is nothing to be predicted.
  """

  separate_documents = True

  def __init__(self, texts: Sequence[Taught], context: int, packed: bool = False):
    self.context = context
    size = context + 1
    kept = [(tokens[:size], taught[:size]) for tokens, taught in texts if any(taught[1:size])]
    self.cut = sum(len(tokens) > size for tokens, taught in texts if any(taught[1:size]))
    self.dropped = len(texts) - len(kept)
    if not kept:
      raise UserError(
        f'no text has anything to be predicted in its first {size} tokens: give more, or a longer context'
      )
    places = _placed([len(tokens) for tokens, _ in kept], size) if packed else [(row, 0) for row in range(len(kept))]
    shape = (1 + max(row for row, _ in places), size)
    self._tokens, self._position = np.zeros((2, *shape), np.int32)
    self._segment = np.zeros(shape, np.int32)
    self._weights = np.zeros(shape, np.float32)
    for (row, start), (tokens, taught) in zip(places, kept, strict=True):
      within = np.s_[row, start : start + len(tokens)]
      self._tokens[within], self._weights[within] = tokens, taught
      self._position[within] = np.arange(len(tokens))
      self._segment[within] = 1 + self._segment[row].max()
      self._weights[row, start] = 0

  def __len__(self) -> int:
    return len(self._tokens)

  @property
  def predicted(self) -> int:
    """Tokens to be predicted in all rows."""
    return int(self._weights.sum())

  def batch(self, indices: Integer[np.ndarray, 'B'], step: int = 0) -> Batch:
    """tokens and weights [B, context + 1] and their layout; an index of -1 gives a row of padding."""
    del step
    real = indices[:, None] >= 0
    each = (self._tokens, self._weights, self._position, self._segment)
    tokens, weights, position, segment = (np.where(real, array[indices], 0) for array in each)
    return {'tokens': tokens, 'weights': weights, 'layout': texts_apart(position, segment)}


def _placed(lengths: Sequence[int], size: int) -> list[tuple[int, int]]:
  """Row and place of each text, in the first of the last rows that has room for it."""
  room: list[int] = []
  places = []
  for length in lengths:
    first = max(len(room) - _OPEN, 0)
    row = next((row for row in range(first, len(room)) if room[row] >= length), len(room))
    if row == len(room):
      room.append(size)
    places.append((row, size - room[row]))
    room[row] -= length
  return places


_OPEN = 64
"""Rows that are looked at for room: of millions of texts, all of them would be too many."""
