"""Text from a language model: prompts are read at once, then tokens are drawn from a cache."""

from collections.abc import Callable, Generator, Iterator, Sequence
import dataclasses
from typing import Literal

from jaxtyping import Array, Bool, Float, Int, Key
import numpy as np

from gpt_jax import hosts
from gpt_jax.decoding.acceptance import Rejection, Typical
from gpt_jax.decoding.drafts import Alone, Draft
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.decoding.steps import (
  Manner,
  Prompt,
  State,
  Tokens,
  begin,
  bucket,
  decode_tokens,
  empty,
  padded,
  prefill,
  repeated,
  row_keys,
  unstacked,
)
from gpt_jax.models.heads import LanguageModel
from gpt_jax.types import Layout, Params, UserError

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
  steps: int = 0
  """Times that the model read for these tokens, the prompt not counted."""
  tried: int = 0
  """Candidates of the draft that were weighed: of each step those kept and, if there is one, the next."""
  kept: int = 0
  """Of those tried: kept / tried is the acceptance rate alpha."""


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
  num_samples: int = 1,
  draft: Draft = Alone(),
  acceptance: Rejection | Typical = Rejection(),
) -> list[Completion]:
  """Completions of all prompts, in one batch; the arguments are those of `stream`."""
  pieces = list(
    stream(
      model, params, prompts, max_new_tokens=max_new_tokens, sampling=sampling, stop_ids=stop_ids, stop=stop,
      decode=decode, seed=seed, stride=stride, context=context, first_row=first_row, num_samples=num_samples,
      draft=draft, acceptance=acceptance,
    )
  )  # fmt: skip
  return [joined(row) for row in zip(*pieces, strict=True)]


def joined(pieces: Sequence[Completion]) -> Completion:
  """The pieces of one row as a whole."""
  return Completion(
    np.concatenate([piece.tokens for piece in pieces]),
    np.concatenate([piece.log_probabilities for piece in pieces]),
    pieces[-1].finish,
    sum(piece.steps for piece in pieces),
    sum(piece.tried for piece in pieces),
    sum(piece.kept for piece in pieces),
  )


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
  num_samples: int = 1,
  draft: Draft = Alone(),
  acceptance: Rejection | Typical = Rejection(),
) -> Iterator[list[Completion]]:
  """What was added to each prompt, first by one token, then by about `stride` a time, until every row is finished.

  Prompts may differ in length. Masks with `Prefix` read them in both directions. Each is read once and written on from
  `num_samples` times: the rows of a prompt follow one another. Token t of row r is drawn by random numbers of
  (seed, first_row + r, t) alone. `stop` strings are looked for in what `decode` makes of the new tokens. `context` is
  the length the model was made for; None: that of its learned positions, if it has any.

  A `draft` proposes tokens of which the model reads several at once: the text is distributed as without it, greedy text
  is the same, unless `acceptance` is `Typical`. A program is compiled for each number of prompts, bucket of lengths
  (see `bucket`), sampling, stride and kind of draft, and used again.

  Raises:
    UserError: an empty prompt, an unknown token, a text longer than the context, or a number outside its range.
  """
  model, params = unstacked(model, params)
  request = Request(max_new_tokens, Manner(sampling, acceptance, stride), stop_ids, stop, decode, draft)
  request.check(model, prompts, context)
  if num_samples < 1:
    raise UserError(f'num_samples = {num_samples} must be at least 1')

  def pieces() -> Iterator[list[Completion]]:
    tokens, layout, counts = padded(prompts)
    first = first_row * num_samples
    keys = row_keys(seed, np.arange(first, first + len(prompts) * num_samples))
    state = empty(model, draft, len(prompts), request.room(tokens.shape[1]))
    start = np.zeros_like(counts)
    yield from write(model, params, request, state, tokens, layout, start, counts, keys)

  return pieces()


@dataclasses.dataclass(frozen=True)
class Request:
  """How to write on; the fields are arguments of `stream`."""

  max_new_tokens: int
  manner: Manner
  stop_ids: Sequence[int]
  stop: Sequence[str]
  decode: Callable[[Sequence[int]], str] | None
  draft: Draft

  def room(self, length: int) -> int:
    """The slots that it takes to write on from `length` tokens, candidates included."""
    return bucket(length + self.max_new_tokens + len(self.draft.tree))

  def stops(self, vocab_size: int) -> Bool[np.ndarray, 'V']:
    """Which tokens end a text."""
    stops = np.zeros(vocab_size, bool)
    stops[list(self.stop_ids)] = True
    return stops

  def check(self, model: LanguageModel, prompts: Sequence[Prompt], context: int | None) -> None:
    """Raises UserError where `stream` would."""
    config = model.config
    if not prompts:
      raise UserError('prompts is empty; give at least one')
    for name, number in (('max_new_tokens', self.max_new_tokens), ('stride', self.manner.stride)):
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
    self.manner.acceptance.check(self.manner.sampling, self.draft.tree)
    self.draft.check(model, max(map(len, prompts)) + self.max_new_tokens)

  def stop_end(self, written: Sequence[int], new: Sequence[int]) -> int | None:
    """How many of the new tokens it takes to complete a stop string; None: there is none."""
    decode = self.decode
    if not self.stop or not new or decode is None:
      return None
    found = lambda end: any(string in decode([*written, *new[:end]]) for string in self.stop)
    return next((end for end in range(1, len(new) + 1) if found(end)), None) if found(len(new)) else None


def write(
  model: LanguageModel,
  params: Params,
  request: Request,
  state: State,
  tokens: Int[np.ndarray, 'B T'],
  layout: Layout,
  start: Int[np.ndarray, 'B'],
  counts: Int[np.ndarray, 'B'],
  keys: Key[Array, 'M'],
) -> Generator[list[Completion], None, State]:
  """Reads the first `counts` of the tokens behind the first `start` that the state has read, and writes on from there.

  With more keys than texts, each text is written on from as often. Returns the state in which the last tokens were
  drawn.
  """
  stops = request.stops(model.config.vocab_size)
  limit = np.int32(request.max_new_tokens)
  state, logits = prefill(model, params, request.draft, state, tokens, layout, start, counts)
  if len(keys) != len(counts):
    state, logits = repeated((state, logits), len(keys) // len(counts))
  state, drawn = begin(request.manner, state, logits, keys, stops, limit)
  written: list[list[int]] = [[] for _ in range(len(keys))]
  finishes: list[Finish] = [None] * len(keys)
  while True:
    drawn = hosts.fetched(drawn)
    pieces = []
    for row in range(len(keys)):
      added = 0 if finishes[row] else int(drawn.count[row])
      new = drawn.tokens[row, :added]
      if (end := request.stop_end(written[row], new.tolist())) is not None:
        added, finishes[row] = end, 'stop'
      elif drawn.done[row]:
        last = new[-1] if added else None
        finishes[row] = finishes[row] or ('stop' if last is not None and stops[last] else 'length')
      written[row] += new[:added].tolist()
      numbers = (int(counts[row]) for counts in (drawn.steps, drawn.tried, drawn.kept))
      pieces.append(Completion(new[:added], drawn.log_probabilities[row, :added], finishes[row], *numbers))
    yield pieces
    if all(finishes):
      return state
    done = np.array([finish is not None for finish in finishes])
    state, drawn = decode_tokens(model, request.manner, params, request.draft, state, done, stops, limit)
