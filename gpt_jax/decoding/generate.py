"""Text from a language model: prompts are read at once, then tokens are drawn one by one from a cache."""

from collections.abc import Callable, Generator, Iterator, Sequence
import dataclasses
from typing import Literal

import jax
from jaxtyping import Bool, Float
import numpy as np

from gpt_jax.decoding.sampling import Sampling
from gpt_jax.decoding.steps import (
  Drawn,
  State,
  Tokens,
  bucket,
  decode_tokens,
  empty,
  left_padded,
  prefill,
  row_keys,
  unstacked,
)
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.types import Params, UserError

Prompt = Sequence[int] | Tokens
Finish = Literal['stop', 'length'] | None


@dataclasses.dataclass(frozen=True)
class Completion:
  """What the model wrote after one prompt; of a stream, what was added to it since the last."""

  tokens: Tokens
  """With the stop id it ended on, or up to the token that completes a stop string."""
  log_probabilities: Float[np.ndarray, '_']
  """Of each token under the model itself: temperature 1, no top-k, no top-p."""
  finish: Finish
  """A stop id or string was drawn, or max_new_tokens were; None: it goes on."""


def generate(
  model: LanguageModel,
  params: Params,
  prompts: Sequence[Prompt],
  *,
  max_new_tokens: int,
  sampling: Sampling = Sampling(),
  stop_ids: Sequence[int] = (),
  stop: Sequence[str] = (),
  decode: Callable[[Sequence[int]], str] | None = None,
  seed: int = 0,
  stride: int = 16,
  context: int | None = None,
  first_row: int = 0,
) -> list[Completion]:
  """Completions of all prompts, in one batch; the arguments are those of `stream`."""
  pieces = list(
    stream(
      model, params, prompts, max_new_tokens=max_new_tokens, sampling=sampling, stop_ids=stop_ids, stop=stop,
      decode=decode, seed=seed, stride=stride, context=context, first_row=first_row,
    )
  )  # fmt: skip
  return [
    Completion(
      np.concatenate([piece.tokens for piece in row]),
      np.concatenate([piece.log_probabilities for piece in row]),
      row[-1].finish,
    )
    for row in zip(*pieces, strict=True)
  ]


def stream(
  model: LanguageModel,
  params: Params,
  prompts: Sequence[Prompt],
  *,
  max_new_tokens: int,
  sampling: Sampling = Sampling(),
  stop_ids: Sequence[int] = (),
  stop: Sequence[str] = (),
  decode: Callable[[Sequence[int]], str] | None = None,
  seed: int = 0,
  stride: int = 16,
  context: int | None = None,
  first_row: int = 0,
) -> Iterator[list[Completion]]:
  """What was added to each prompt, first by one token, then by up to `stride` a time, until every row is finished.

  Prompts may differ in length. Masks with `Prefix` read them in both directions. Token t of row r is drawn by random
  numbers of (seed, first_row + r, t) alone. `stop` strings are looked for in what `decode` makes of the new tokens.
  `context` is the length the model was made for; None: that of its learned positions, if it has any. A program is
  compiled for each number of prompts, bucket of lengths (see `bucket`), sampling and stride, and used again.

  Raises:
    UserError: an empty prompt, an unknown token, a text longer than the context, or a number outside its range.
  """
  model, params = unstacked(model, params)
  request = Request(max_new_tokens, sampling, stop_ids, stop, decode, stride)
  request.check(model.config, prompts, context)

  def pieces() -> Iterator[list[Completion]]:
    tokens, segment = left_padded(prompts)
    rows, length = tokens.shape
    stops = request.stops(model.config.vocab_size)
    keys = row_keys(seed, np.arange(first_row, first_row + rows))
    cache = empty(model, rows, bucket(length + max_new_tokens))
    state, drawn = prefill(model, sampling, params, cache, tokens, segment, 0, length, stops, keys)
    yield from write(model, params, state, drawn, request)

  return pieces()


@dataclasses.dataclass(frozen=True)
class Request:
  """How to write on; the fields are arguments of `stream`."""

  max_new_tokens: int
  sampling: Sampling
  stop_ids: Sequence[int]
  stop: Sequence[str]
  decode: Callable[[Sequence[int]], str] | None
  stride: int

  def stops(self, vocab_size: int) -> Bool[np.ndarray, 'V']:
    """Which tokens end a text."""
    stops = np.zeros(vocab_size, bool)
    stops[list(self.stop_ids)] = True
    return stops

  def check(self, config: TransformerConfig, prompts: Sequence[Prompt], context: int | None) -> None:
    """Raises UserError where `stream` would."""
    if not prompts:
      raise UserError('prompts is empty; give at least one')
    for name, number in (('max_new_tokens', self.max_new_tokens), ('stride', self.stride)):
      if number < 1:
        raise UserError(f'{name} = {number} must be at least 1')
    ids_by_name = [(f'prompts[{row}]', prompt) for row, prompt in enumerate(prompts)] + [('stop_ids', self.stop_ids)]
    for name, ids in ids_by_name:
      foreign = [token for token in ids if not 0 <= token < config.vocab_size]
      if foreign:
        raise UserError(
          f'{name} has token {foreign[0]}, but the vocabulary has {config.vocab_size}; use the tokenizer of this model'
        )
    if self.stop and (self.decode is None or not all(self.stop)):
      raise UserError('stop takes strings that are not empty, and `decode` to make text of tokens')
    limit = config.positions.length if context is None and config.positions is not None else context
    for row, prompt in enumerate(prompts):
      if not len(prompt):
        raise UserError(f'prompts[{row}] is empty; to write from nothing, give the end-of-text token as the prompt')
      if limit is not None and len(prompt) + self.max_new_tokens > limit:
        raise UserError(
          f'prompts[{row}] of {len(prompt)} tokens and max_new_tokens = {self.max_new_tokens} exceed the context of '
          f'{limit}; shorten the prompt or lower max_new_tokens'
        )

  def stop_end(self, written: Sequence[int], new: Sequence[int]) -> int | None:
    """How many of the new tokens it takes to complete a stop string; None: there is none."""
    decode = self.decode
    if not self.stop or not new or decode is None:
      return None
    found = lambda end: any(string in decode([*written, *new[:end]]) for string in self.stop)
    return next((end for end in range(1, len(new) + 1) if found(end)), None) if found(len(new)) else None


def write(
  model: LanguageModel, params: Params, state: State, drawn: Drawn, request: Request
) -> Generator[list[Completion], None, State]:
  """Writes on from what `prefill` gave; returns the state in which the last tokens were drawn."""
  stops = request.stops(model.config.vocab_size)
  rows = len(drawn.done)
  written: list[list[int]] = [[] for _ in range(rows)]
  finishes: list[Finish] = [None] * rows
  count = 1
  while True:
    tokens, log_probabilities, valid, ends = jax.device_get(
      (drawn.tokens, drawn.log_probabilities, drawn.valid, drawn.done)
    )
    pieces = []
    for row in range(rows):
      added = 0 if finishes[row] else int(valid[row].sum())
      new = tokens[row, :added]
      if (end := request.stop_end(written[row], new.tolist())) is not None:
        added, finishes[row] = end, 'stop'
      elif ends[row]:
        finishes[row] = finishes[row] or 'stop'
      elif count == request.max_new_tokens:
        finishes[row] = finishes[row] or 'length'
      written[row] += new[:added].tolist()
      pieces.append(Completion(new[:added], log_probabilities[row, :added], finishes[row]))
    yield pieces
    if all(finishes):
      return state
    steps = min(request.stride, request.max_new_tokens - count)
    done = np.array([finish is not None for finish in finishes])
    state, drawn = decode_tokens(model, request.sampling, request.stride, params, state, done, stops, steps)
    count += steps
