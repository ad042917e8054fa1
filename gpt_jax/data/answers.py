"""Prompts and the answers to them as rows, of which only the answers are predicted."""

from collections.abc import Sequence

from jaxtyping import Integer
import numpy as np

from gpt_jax.data.rows import one_text
from gpt_jax.types import Batch, UserError

Pair = tuple[Sequence[int], Sequence[int]]
"""The tokens of a prompt, and of the answer that follows it."""


class Answers:
  """Row i is pair i, padded behind its end; an answer is cut where the row ends.

  Args:
    pairs: of prompts and answers.
    context: tokens that a row is read for; it holds one more.

  Raises:
    UserError: there is no pair, or a prompt fills its row.
  """

  separate_documents = True

  def __init__(self, pairs: Sequence[Pair], context: int):
    self.context = context
    self._tokens = np.zeros((len(pairs), context + 1), np.int32)
    self._starts, self._ends = np.zeros((2, len(pairs), 1), np.int64)
    for row, (prompt, answer) in enumerate(pairs):
      if not 0 < len(prompt) <= context:
        raise UserError(f'prompt {row} has {len(prompt)} tokens: it must have at least 1, and at most {context}')
      tokens = [*prompt, *answer][: context + 1]
      self._tokens[row, : len(tokens)] = tokens
      self._starts[row], self._ends[row] = len(prompt), len(tokens)
    if not len(pairs):
      raise UserError('there is no prompt: the source has no text for this split')

  def __len__(self) -> int:
    return len(self._tokens)

  def batch(self, indices: Integer[np.ndarray, 'B']) -> Batch:
    """tokens and weights [B, context + 1] and their layout; an index of -1 gives a row of padding."""
    places = np.arange(self.context + 1)
    real = (indices[:, None] >= 0) & (places < self._ends[indices])
    weights = (real & (places >= self._starts[indices])).astype(np.float32)
    return {'tokens': np.where(real, self._tokens[indices], 0), 'weights': weights, 'layout': one_text(real)}
