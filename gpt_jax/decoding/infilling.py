"""Blanks of a text filled by a model that reads the text both ways (GLM, section 2.1)."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from gpt_jax.data.marks import Marks
from gpt_jax.decoding.generate import Completion, generate
from gpt_jax.decoding.steps import Placed, Tokens
from gpt_jax.models.heads import LanguageModel
from gpt_jax.types import Params, UserError


def opened(
  text: Sequence[int] | Tokens,
  place: int,
  marks: Marks,
  filled: Mapping[int, Sequence[int]] | None = None,
  running: bool = False,
) -> Placed:
  """A text as it is read before the blank at `place` is filled: part A, blanks `filled` before, and `start`.

  Args:
    text: with a mask for each blank.
    place: of the mask in the text.
    marks: of the vocabulary.
    filled: by the places of other masks, what stands in their blanks, in the order in which they were filled.
    running: the rest of a text stands at the places that follow (see `data.infilling.Blanks`).
  """
  size = len(text)
  spans = [*(filled or {}).items(), (place, ())]
  tokens = [*text, *(token for _, span in spans for token in (marks.start, *span))]
  position = [*range(size), *(at for at, span in spans for _ in range(len(span) + 1))]
  block = [0] * size + [1 + n for _, span in spans for n in range(len(span) + 1)]
  if running and text[place] == marks.document:
    position, block = list(range(len(tokens))), [0] * len(tokens)
  prefix = np.arange(len(tokens)) < size
  return Placed(np.array(tokens, np.int32), np.array(position, np.int32), np.array(block, np.int32), prefix)


@dataclasses.dataclass(frozen=True)
class Filled:
  """A text, and what was written in its blanks."""

  text: Tokens
  blanks: Mapping[int, Completion]
  """By the place of a mask; of each completion the tokens with what they ended on."""
  ends: tuple[int, ...]
  """Tokens that end a blank, and are no part of the text."""

  @property
  def whole(self) -> list[int]:
    """The text with its blanks filled."""
    tokens: list[int] = []
    for place, token in enumerate(self.text.tolist()):
      tokens += self.span(place) if place in self.blanks else [token]
    return tokens

  def span(self, place: int) -> list[int]:
    """What was written in a blank, without what it ended on."""
    return [token for token in self.blanks[place].tokens.tolist() if token not in self.ends]


def fill(
  model: LanguageModel,
  params: Params,
  texts: Sequence[Sequence[int] | Tokens],
  marks: Marks,
  *,
  max_new_tokens: int,
  stop_ids: Sequence[int] = (),
  running: bool = False,
  seed: int = 0,
  **how: Any,
) -> list[Filled]:
  """Every blank of every text filled, one after the other in their order, each knowing those before it.

  Blanks that training has in any order are written in that of the text here. Those of the same number are filled in one
  batch of all texts; a text that has none left stands in it with its last one, and keeps what was written before: so
  the draws of a text, and the shapes of programs, do not depend on how many blanks others have.

  Args:
    model: without dropout.
    params: of the model.
    texts: with one mask or more each.
    marks: of the vocabulary; a blank ends with `marks.end`.
    max_new_tokens: of each blank.
    stop_ids: end a blank besides.
    running: see `opened`.
    seed: of the draws; each further blank has the next one.
    how: other arguments of `generate`.

  Raises:
    UserError: a text without a blank, or what `generate` refuses.
  """
  arrays = [np.array(list(text), np.int32) for text in texts]
  places = [np.flatnonzero(np.isin(text, marks.masks)).tolist() for text in arrays]
  for row, found in enumerate(places):
    if not found:
      raise UserError(f'texts[{row}] has no blank: write [MASK], [sMASK] or [gMASK] in it')
  ends = (*stop_ids, marks.end)
  filled = [Filled(text, {}, ends) for text in arrays]
  for number in range(max(map(len, places))):
    prompts = []
    for text, at in zip(filled, places, strict=True):
      *known, place = at[: number + 1]
      spans = {before: text.span(before) for before in known}
      prompts.append(opened(text.text, place, marks, spans, running))
    completions = generate(
      model, params, prompts, max_new_tokens=max_new_tokens, stop_ids=ends, seed=seed + number, **how
    )
    filled = [
      Filled(text.text, {**text.blanks, at[number]: completion}, ends) if number < len(at) else text
      for text, at, completion in zip(filled, places, completions, strict=True)
    ]
  return filled
