"""What decoding does on the device: read a piece of text into a cache, then draw tokens one by one."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key
import numpy as np

from gpt_jax.decoding.sampling import Sampling
from gpt_jax.models.attention import Cache
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.transformer import empty_cache, unstack
from gpt_jax.types import Layout, Params

Tokens = Int[np.ndarray, '_']


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


def unstacked(model: LanguageModel, params: Params) -> tuple[LanguageModel, Params]:
  """The model as decoding runs it, layers apart and without dropout, and its parameters.

  Give `generate` what this returns when calling it more than once, so that the parameters are taken apart once.
  """
  config = model.config.evaluated()
  if config.stacked:
    config, params = dataclasses.replace(config, stacked=False), unstack(params)
  return model.copy(config=config), params


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


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnames='cache')
def prefill(
  model: LanguageModel,
  sampling: Sampling,
  params: Params,
  cache: Cache,
  tokens: Int[Array, 'B T'],
  segment: Int[Array, 'B T'],
  start: Int[Array, ''],
  end: Int[Array, ''],
  stops: Bool[Array, 'V'],
  keys: Key[Array, 'B'],
) -> tuple[State, Drawn]:
  """Reads tokens behind the first `start` of the cache and draws the next, from the logits of the last place alone.

  Tokens from `end` on are padding, and so are those of segment 0. What the cache held behind `start` is forgotten.
  """
  order = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
  position = jnp.maximum(start + jnp.cumsum(segment, axis=1) - 1, 0)
  layout = Layout(order, position, jnp.zeros_like(order), segment, segment > 0)
  logits, cache = _read(model, params, tokens, layout, cache.rewound(start), end)
  state = State(cache.rewound(start + end), jnp.zeros(len(tokens), jnp.int32), keys, jnp.zeros((), jnp.int32))
  return _draw(sampling, stops, state, _nothing(len(tokens), 1), logits, 0)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def empty(model: LanguageModel, rows: int, length: int) -> Cache:
  """A cache for `length` tokens of each row, in which nothing is read."""
  return empty_cache(model.config, rows, length)


@functools.partial(jax.jit, static_argnums=(0, 2))
def grown(model: LanguageModel, cache: Cache, length: int) -> Cache:
  """The same cache with room for `length` tokens."""
  larger = empty_cache(model.config, len(cache.layout.segment), length)
  return jax.tree.map(lambda new, old: jax.lax.dynamic_update_slice(new, old, (0,) * old.ndim), larger, cache)


def row_keys(seed: int, rows: Int[np.ndarray, 'B']) -> Key[Array, 'B']:
  """What the draws of each row are made from: of the seed and the number of the row alone."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.asarray(rows))


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnames='state')
def decode_tokens(
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
  model: LanguageModel, params: Params, tokens: Int[Array, 'B T'], layout: Layout, cache: Cache, end: Any = 1
) -> tuple[Float[Array, 'B V'], Cache]:
  """The logits that follow the first `end` tokens, and the cache with all of them."""
  result: Any = model.apply(params, tokens, layout, cache, method='features')
  hidden, unembed, cache = result
  return unembed(jax.lax.dynamic_index_in_dim(hidden, end - 1, axis=1, keepdims=False)), cache


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
