"""Text from a language model: prompts are read at once, then tokens are drawn one by one from a cache."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
from typing import Any, Literal

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key
import numpy as np

from gpt_jax.decoding.sampling import Sampling
from gpt_jax.models.attention import Cache
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.transformer import TransformerConfig, empty_cache, unstack
from gpt_jax.types import Layout, Params, UserError

Tokens = Int[np.ndarray, '_']


@dataclasses.dataclass(frozen=True)
class Completion:
  """What the model wrote after one prompt; of a stream, what was added to it since the last."""

  tokens: Tokens
  """With the stop id it ended on, or up to the token that completes a stop string."""
  log_probabilities: Float[np.ndarray, '_']
  """Of each token under the model itself: temperature 1, no top-k, no top-p."""
  finish: Literal['stop', 'length'] | None
  """A stop id or string was drawn, or max_new_tokens were; None: it goes on."""


def unstacked(model: LanguageModel, params: Params) -> tuple[LanguageModel, Params]:
  """The model as decoding runs it, layers apart and without dropout, and its parameters.

  Give `generate` what this returns when calling it more than once, so that the parameters are taken apart once.
  """
  config = model.config.evaluated()
  if config.stacked:
    config, params = dataclasses.replace(config, stacked=False), unstack(params)
  return model.copy(config=config), params


def generate(
  model: LanguageModel,
  params: Params,
  prompts: Sequence[Sequence[int] | Tokens],
  *,
  max_new_tokens: int,
  sampling: Sampling = Sampling(),
  stop_ids: Sequence[int] = (),
  stop: Sequence[str] = (),
  decode: Callable[[Sequence[int]], str] | None = None,
  seed: int = 0,
  stride: int = 16,
  context: int | None = None,
) -> list[Completion]:
  """Completions of all prompts, in one batch; the arguments are those of `stream`."""
  pieces = list(
    stream(
      model, params, prompts, max_new_tokens=max_new_tokens, sampling=sampling, stop_ids=stop_ids, stop=stop,
      decode=decode, seed=seed, stride=stride, context=context,
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
  prompts: Sequence[Sequence[int] | Tokens],
  *,
  max_new_tokens: int,
  sampling: Sampling = Sampling(),
  stop_ids: Sequence[int] = (),
  stop: Sequence[str] = (),
  decode: Callable[[Sequence[int]], str] | None = None,
  seed: int = 0,
  stride: int = 16,
  context: int | None = None,
) -> Iterator[list[Completion]]:
  """What was added to each prompt, first by one token, then by up to `stride` a time, until every row is finished.

  Prompts may differ in length. Masks with `Prefix` read them in both directions. Token t of row r is drawn by random
  numbers of (seed, r, t) alone. `stop` strings are looked for in what `decode` makes of the new tokens. `context` is
  the length the model was made for; None: that of its learned positions, if it has any. A program is compiled for
  each number of prompts, bucket of lengths (see `bucket`), sampling and stride, and used again.

  Raises:
    UserError: an empty prompt, an unknown token, a text longer than the context, or a number outside its range.
  """
  model, params = unstacked(model, params)
  _check(model.config, prompts, max_new_tokens, stop_ids, stop, decode, stride, context)
  return _stream(model, params, prompts, max_new_tokens, sampling, stop_ids, stop, decode, seed, stride)


def _stream(
  model: LanguageModel,
  params: Params,
  prompts: Sequence[Sequence[int] | Tokens],
  max_new_tokens: int,
  sampling: Sampling,
  stop_ids: Sequence[int],
  stop: Sequence[str],
  decode: Callable[[Sequence[int]], str] | None,
  seed: int,
  stride: int,
) -> Iterator[list[Completion]]:
  tokens, segment = left_padded(prompts)
  rows, length = tokens.shape
  stops = np.zeros(model.config.vocab_size, bool)
  stops[list(stop_ids)] = True
  state, drawn = _prefill(
    model, sampling, bucket(length + max_new_tokens), params, tokens, segment, stops, jax.random.key(seed)
  )
  written: list[list[int]] = [[] for _ in range(rows)]
  finishes: list[Literal['stop', 'length'] | None] = [None] * rows
  count = 1
  while True:
    drawn = jax.device_get(drawn)
    pieces = []
    for row in range(rows):
      added = 0 if finishes[row] else int(drawn.valid[row].sum())
      new = drawn.tokens[row, :added]
      if (end := _stop_end(written[row], new.tolist(), stop, decode)) is not None:
        added, finishes[row] = end, 'stop'
      elif drawn.done[row]:
        finishes[row] = finishes[row] or 'stop'
      elif count == max_new_tokens:
        finishes[row] = finishes[row] or 'length'
      written[row] += new[:added].tolist()
      pieces.append(Completion(new[:added], drawn.log_probabilities[row, :added], finishes[row]))
    yield pieces
    if all(finishes):
      return
    steps = min(stride, max_new_tokens - count)
    done = np.array([finish is not None for finish in finishes])
    state, drawn = _decode(model, sampling, stride, params, state, done, stops, steps)
    count += steps


def bucket(length: int) -> int:
  """The least length to compile for that holds `length`: multiples of 16 to 128, then eight to each doubling."""
  step = max(16, 1 << max((length - 1).bit_length() - 4, 0))
  return -(-length // step) * step


def left_padded(prompts: Sequence[Sequence[int] | Tokens]) -> tuple[Int[np.ndarray, 'B T'], Int[np.ndarray, 'B T']]:
  """Prompts as rows of one bucket that end together, and their segments: 1, or 0 for the padding before them."""
  length = bucket(max(map(len, prompts)))
  tokens, segment = np.zeros((2, len(prompts), length), np.int32)
  for row, prompt in enumerate(prompts):
    tokens[row, length - len(prompt) :] = prompt
    segment[row, length - len(prompt) :] = 1
  return tokens, segment


def _check(
  config: TransformerConfig,
  prompts: Sequence[Sequence[int] | Tokens],
  max_new_tokens: int,
  stop_ids: Sequence[int],
  stop: Sequence[str],
  decode: Callable[[Sequence[int]], str] | None,
  stride: int,
  context: int | None,
) -> None:
  if not prompts:
    raise UserError('prompts is empty; give at least one')
  for name, number in (('max_new_tokens', max_new_tokens), ('stride', stride)):
    if number < 1:
      raise UserError(f'{name} = {number} must be at least 1')
  for name, ids in (*((f'prompts[{row}]', prompt) for row, prompt in enumerate(prompts)), ('stop_ids', stop_ids)):
    foreign = [token for token in ids if not 0 <= token < config.vocab_size]
    if foreign:
      raise UserError(
        f'{name} has token {foreign[0]}, but the vocabulary has {config.vocab_size}; use the tokenizer of this model'
      )
  if stop and (decode is None or not all(stop)):
    raise UserError('stop takes strings that are not empty, and `decode` to make text of tokens')
  limit = config.positions.length if context is None and config.positions is not None else context
  for row, prompt in enumerate(prompts):
    if not len(prompt):
      raise UserError(f'prompts[{row}] is empty; to write from nothing, give the end-of-text token as the prompt')
    if limit is not None and len(prompt) + max_new_tokens > limit:
      raise UserError(
        f'prompts[{row}] of {len(prompt)} tokens and max_new_tokens = {max_new_tokens} exceed the context of {limit};'
        ' shorten the prompt or lower max_new_tokens'
      )


def _stop_end(
  written: Sequence[int], new: Sequence[int], stop: Sequence[str], decode: Callable[[Sequence[int]], str] | None
) -> int | None:
  """How many of the new tokens it takes to complete a stop string; None: there is none."""
  if not stop or not new or decode is None:
    return None
  found = lambda end: any(string in decode([*written, *new[:end]]) for string in stop)
  return next((end for end in range(1, len(new) + 1) if found(end)), None) if found(len(new)) else None


# ---- on the device -------------------------------------------------------------------------------------------------


@struct.dataclass
class State:
  """A text being written: all before its last token is in the cache."""

  cache: Cache
  last: Int[Array, 'B']
  keys: Key[Array, 'B']
  count: Int[Array, '']
  """Tokens drawn."""


@struct.dataclass
class Drawn:
  """The tokens of one call; a row's are valid up to the stop id it ends on. On the host its arrays are numpy's."""

  tokens: Int[Array | np.ndarray, 'B T']
  log_probabilities: Float[Array | np.ndarray, 'B T']
  valid: Bool[Array | np.ndarray, 'B T']
  done: Bool[Array | np.ndarray, 'B']


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _prefill(
  model: LanguageModel,
  sampling: Sampling,
  total: int,
  params: Params,
  tokens: Int[Array, 'B T'],
  segment: Int[Array, 'B T'],
  stops: Bool[Array, 'V'],
  key: Key[Array, ''],
) -> tuple[State, Drawn]:
  """Reads the prompts and draws the first token, from the logits of the last place alone."""
  rows, length = tokens.shape
  order = jnp.broadcast_to(jnp.arange(length), tokens.shape)
  position = jnp.maximum(jnp.cumsum(segment, axis=1) - 1, 0)
  layout = Layout(order, position, jnp.zeros_like(order), segment, segment > 0)
  logits, cache = _read(model, params, tokens, layout, empty_cache(model.config, rows, total))
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows))
  state = State(cache, jnp.zeros(rows, jnp.int32), keys, jnp.zeros((), jnp.int32))
  return _draw(sampling, stops, state, _nothing(rows, 1), logits, 0)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnames='state')
def _decode(
  model: LanguageModel,
  sampling: Sampling,
  stride: int,
  params: Params,
  state: State,
  done: Bool[Array, 'B'],
  stops: Bool[Array, 'V'],
  steps: Int[Array, ''],
) -> tuple[State, Drawn]:
  """Draws `steps` tokens, at most `stride`, or fewer when every row is done before."""

  def unfinished(carry: tuple[Int[Array, ''], State, Drawn]) -> Bool[Array, '']:
    step, _, drawn = carry
    return (step < steps) & ~jnp.all(drawn.done)

  def body(carry: tuple[Int[Array, ''], State, Drawn]) -> tuple[Int[Array, ''], State, Drawn]:
    step, state, drawn = carry
    logits, cache = _read(model, params, state.last[:, None], _next(state.cache), state.cache)
    state, drawn = _draw(sampling, stops, dataclasses.replace(state, cache=cache), drawn, logits, step)
    return step + 1, state, drawn

  drawn = dataclasses.replace(_nothing(len(done), stride), done=done)
  return jax.lax.while_loop(unfinished, body, (jnp.zeros((), jnp.int32), state, drawn))[1:]


def _read(
  model: LanguageModel, params: Params, tokens: Int[Array, 'B T'], layout: Layout, cache: Cache
) -> tuple[Float[Array, 'B V'], Cache]:
  """The logits that follow the last tokens, and the cache with all of them."""
  result: Any = model.apply(params, tokens, layout, cache, method='features')
  hidden, unembed, cache = result
  return unembed(hidden[:, -1]), cache


def _next(cache: Cache) -> Layout:
  """Where the token after the last one read stands."""
  last = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, cache.length - 1, 1, axis=1), cache.layout)
  return dataclasses.replace(last, order=last.order + 1, position=last.position + 1, prefix=jnp.zeros_like(last.prefix))


def _nothing(rows: int, length: int) -> Drawn:
  zeros = jnp.zeros((rows, length), jnp.int32)
  return Drawn(zeros, zeros.astype(jnp.float32), zeros.astype(bool), jnp.zeros(rows, bool))


def _draw(
  sampling: Sampling,
  stops: Bool[Array, 'V'],
  state: State,
  drawn: Drawn,
  logits: Float[Array, 'B V'],
  at: int | jax.Array,
) -> tuple[State, Drawn]:
  """Draws the next token of every row into place `at`; rows that are done draw too, but it is not valid."""
  keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(state.keys, state.count)
  tokens = sampling.draw(keys, logits).astype(jnp.int32)
  chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
  put = lambda old, new: jnp.asarray(old).at[:, at].set(new)
  drawn = Drawn(
    put(drawn.tokens, tokens),
    put(drawn.log_probabilities, chosen),
    put(drawn.valid, ~drawn.done),
    drawn.done | stops[tokens],
  )
  return dataclasses.replace(state, last=tokens, count=state.count + 1), drawn
