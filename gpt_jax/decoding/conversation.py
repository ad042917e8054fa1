"""A text that a model and others write in turns: what was read once stays read."""

from collections.abc import Callable, Iterator, Sequence
import itertools

import numpy as np

from gpt_jax.decoding.acceptance import Rejection, Typical
from gpt_jax.decoding.drafts import Alone, Draft
from gpt_jax.decoding.generate import Completion, Request, write
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.decoding.steps import Manner, State, Tokens, empty, grown, padded, prompt_layout, row_keys, unstacked
from gpt_jax.models.caches import SPARE
from gpt_jax.models.heads import LanguageModel
from gpt_jax.types import Params

LEAST_ROOM = 512
"""Tokens that the first cache has room for; it doubles when it is full."""


class Conversation:
  """Writes on from a text that grows, and reads of it only what is new.

  The text is given whole each time, so that nobody keeps count: tokens that begin it as they began it the last time are
  in the cache already. A text that was changed is read from the place of the change on; all of it, where the mask lets
  earlier tokens see later ones.

  Args:
    model: without dropout.
    params: of the model.
    context: the length that the model was made for; None: that of its learned positions, if it has any.
    draft: of the candidates that the model reads at once, as of `generate.stream`.
  """

  def __init__(self, model: LanguageModel, params: Params, context: int | None = None, draft: Draft = Alone()):
    self.draft = draft
    self.model, self.params = unstacked(model, params)
    positions = self.model.config.positions
    self.context = positions.length if context is None and positions is not None else context
    self._state: State | None = None
    self._read: list[int] = []

  def stream(
    self,
    text: Sequence[int] | Tokens,
    *,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    stop_ids: Sequence[int] = (),
    stop: Sequence[str] = (),
    decode: Callable[[Sequence[int]], str] | None = None,
    seed: int = 0,
    stride: int = 16,
    acceptance: Rejection | Typical = Rejection(),
  ) -> Iterator[Completion]:
    """What the model adds to the text, as it comes; the arguments are those of `generate.stream`.

    Left before its end, it forgets what was read.

    Raises:
      UserError: an empty text, an unknown token, a text longer than the context, or a number outside its range.
    """
    text = [int(token) for token in text]
    request = Request(max_new_tokens, Manner(sampling, acceptance, stride), stop_ids, stop, decode, self.draft)
    request.check(self.model, [text], self.context)
    return self._stream(text, request, seed)

  def _stream(self, text: list[int], request: Request, seed: int) -> Iterator[Completion]:
    start = self._known(text)
    tokens, _, counts = padded([text[start:]])
    read = np.full_like(counts, start)
    state = self._with_room(max(start + tokens.shape[1], request.room(len(text))))
    self._state, self._read = None, []  # it is given away: who leaves early, leaves none
    keys = row_keys(seed, np.arange(1))
    layout = prompt_layout(tokens, read, counts)
    pieces = write(self.model, self.params, request, state, tokens, layout, read, counts, keys)
    written: list[int] = []
    while True:
      try:
        (piece,) = next(pieces)
      except StopIteration as end:
        # The last token was drawn and not read.
        self._state, self._read = end.value, [*text, *written[:-1]]
        return
      written += piece.tokens.tolist()
      yield piece

  def _known(self, text: list[int]) -> int:
    """How many tokens of a text need no reading; the last is read in any case, as the next follows from it."""
    if any(pattern.mask.looks_ahead for pattern in self.model.config.attention):
      return 0
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(self._read, text[:-1], strict=False))
    known = sum(1 for _ in same)
    forgotten = any(pattern.kept is not None for pattern in self.model.config.attention)
    return 0 if forgotten and len(self._read) - known > SPARE // 2 else known

  def _with_room(self, needed: int) -> State:
    held = 0 if self._state is None else self._state.text.shape[1]
    if self._state is not None and needed <= held:
      return self._state
    room = max(held, LEAST_ROOM)
    while room < needed:
      room *= 2
    if self._state is None:
      return empty(self.model, self.draft, 1, room)
    return grown(self.model, self.draft, self._state, room)
