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
  """By the place of a mask; of each completion the tokens with the mark they ended on."""
  marks: Marks

  @property
  def whole(self) -> list[int]:
    """The text with its blanks filled."""
    tokens: list[int] = []
    for place, token in enumerate(self.text.tolist()):
      tokens += self.span(place) if place in self.blanks else [token]
    return tokens

  def span(self, place: int) -> list[int]:
    """What was written in a blank, without the mark it ended on."""
    return [token for token in self.blanks[place].tokens.tolist() if token != self.marks.end]


def fill(
  model: LanguageModel,
  params: Params,
  texts: Sequence[Sequence[int] | Tokens],
  marks: Marks,
  *,
  max_new_tokens: int,
  stop_ids: Sequence[int] = (),
  running: bool = False,
  context: int | None = None,
  seed: int = 0,
  **how: Any,
) -> list[Filled]:
  """Every blank of every text filled, one after the other in their order, each knowing those before it.

  What `Blanks` writes in any order is written here in that of the text. Of all texts, blanks of the same number are
  filled in one batch.

  Args:
    model: without dropout.
    params: of the model.
    texts: with one mask or more each.
    marks: of the vocabulary; a blank ends with `marks.end`.
    max_new_tokens: of each blank.
    stop_ids: end a blank besides.
    running: see `opened`.
    context: as in `generate`; None: places of the text are bounded by learned positions, and so are those of a blank.
    seed: of the draws.
    how: other arguments of `generate`: sampling, stop, decode.

  Raises:
    UserError: a text without a blank, or what `generate` refuses.
  """
  arrays = [np.array(list(text), np.int32) for text in texts]
  places = [np.flatnonzero(np.isin(text, marks.masks)).tolist() for text in arrays]
  for row, found in enumerate(places):
    if not found:
      raise UserError(f'texts[{row}] has no blank: write [MASK], [sMASK] or [gMASK] in it')
  blanks: list[dict[int, Completion]] = [{} for _ in texts]
  for number in range(max(map(len, places))):
    rows = [row for row in range(len(texts)) if number < len(places[row])]
    prompts = []
    for row in rows:
      before = Filled(arrays[row], blanks[row], marks)
      spans = {place: before.span(place) for place in places[row][:number]}
      prompts.append(opened(arrays[row], places[row][number], marks, spans, running))
    completions = generate(
      model, params, prompts, max_new_tokens=max_new_tokens, stop_ids=(*stop_ids, marks.end), context=context,
      seed=seed + number, **how,
    )  # fmt: skip
    for row, completion in zip(rows, completions, strict=True):
      blanks[row][places[row][number]] = completion
  return [Filled(text, of, marks) for text, of in zip(arrays, blanks, strict=True)]
