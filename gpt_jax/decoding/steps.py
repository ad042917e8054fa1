"""What decoding does on the device: read texts into a cache, then write on, a few candidates read in each step."""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key
import numpy as np

from gpt_jax.decoding.acceptance import Rejection, Typical
from gpt_jax.decoding.drafts import Draft, Text, node_layout
from gpt_jax.decoding.sampling import Sampling, Seen
from gpt_jax.decoding.tree import Tree
from gpt_jax.models import masks
from gpt_jax.models.caches import SPARE, Cache, written
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.transformer import empty_cache, unstack
from gpt_jax.types import Layout, Params

Tokens = Int[np.ndarray, '_']


@dataclasses.dataclass(frozen=True)
class Manner:
  """How tokens are chosen: what a program is compiled for, besides shapes and the draft's tree."""

  sampling: Sampling = Sampling()
  acceptance: Rejection | Typical = Rejection()
  stride: int = 16
  """Tokens of a row after which a call returns."""


def bucket(length: int) -> int:
  """The least length to compile for that holds `length`: multiples of 16 to 128, then eight to each doubling."""
  step = max(16, 1 << max((length - 1).bit_length() - 4, 0))
  return -(-length // step) * step


@dataclasses.dataclass(frozen=True)
class Placed:
  """A prompt whose tokens do not all follow one another in a text: what of it stands in blanks, and where."""

  tokens: Tokens
  position: Int[np.ndarray, '_']
  block: Int[np.ndarray, '_']
  prefix: Bool[np.ndarray, '_']

  def __len__(self) -> int:
    return len(self.tokens)

  def __iter__(self) -> Iterator[int]:
    return iter(self.tokens.tolist())


Prompt = Sequence[int] | Tokens | Placed


def padded(texts: Sequence[Prompt]) -> tuple[Int[np.ndarray, 'B T'], Layout, Int[np.ndarray, 'B']]:
  """Texts as rows of one bucket, padding behind them, where the next tokens go; and how many tokens each has."""
  counts = np.array([len(text) for text in texts], np.int32)
  tokens = np.zeros((len(texts), bucket(int(counts.max()))), np.int32)
  layout = prompt_layout(tokens, np.zeros_like(counts), counts)
  for row, text in enumerate(texts):
    if isinstance(text, Placed):
      for name in ('position', 'block', 'prefix'):
        getattr(layout, name)[row, : len(text)] = getattr(text, name)
    tokens[row, : len(text)] = list(text)
  return tokens, layout, counts


def prompt_layout(
  tokens: Int[Array | np.ndarray, 'B T'], start: Int[Array | np.ndarray, 'B'], count: Int[Array | np.ndarray, 'B']
) -> Layout:
  """Of tokens behind the first `start` of a text; those from `count` on are padding, and stand where the last does."""
  start, count = np.asarray(start), np.asarray(count)
  at = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
  real = at < count[:, None]
  order, position = start[:, None] + at, start[:, None] + np.minimum(at, count[:, None] - 1)
  return Layout(order, position, np.zeros_like(order), real.astype(np.int32), real)


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
  """Texts being written: all of each but its last token is in the cache."""

  cache: Cache
  text: Int[Array, 'B S']
  """By slot: a token's is its place in the text, so the last one's is the length of the cache."""
  keys: Key[Array, 'B']
  count: Int[Array, 'B']
  """Tokens drawn."""
  done: Bool[Array, 'B']
  draft: Any
  """What the draft keeps."""


@struct.dataclass
class Drawn:
  """The tokens of one call, the first `count` of each row. On the host its arrays are numpy's."""

  tokens: Int[Array | np.ndarray, 'B T']
  log_probabilities: Float[Array | np.ndarray, 'B T']
  count: Int[Array | np.ndarray, 'B']
  done: Bool[Array | np.ndarray, 'B']
  steps: Int[Array | np.ndarray, 'B']
  """Times that the model read for a row."""
  tried: Int[Array | np.ndarray, 'B']
  """Candidates that were weighed: of each step those kept and, if there is one, the next."""
  kept: Int[Array | np.ndarray, 'B']


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def empty(model: LanguageModel, draft: Draft, rows: int, length: int) -> State:
  """Room for `length` tokens of each row, in which nothing is read."""
  zeros = jnp.zeros(rows, jnp.int32)
  keys = jnp.broadcast_to(jax.random.key(0), rows)
  text = jnp.zeros((rows, length), jnp.int32)
  return State(
    empty_cache(model.config, rows, length, max(SPARE, 2 * len(draft.tree))),
    text, keys, zeros, zeros.astype(bool), draft.empty(rows, length),
  )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 3))
def grown(model: LanguageModel, draft: Draft, state: State, length: int) -> State:
  """The same with room for `length` tokens a row."""
  larger = jax.eval_shape(lambda: empty(model, draft, len(state.text), length))

  def widened(old: jax.Array, new: jax.ShapeDtypeStruct) -> jax.Array:
    more = [after - before for before, after in zip(old.shape, new.shape, strict=True)]
    return jnp.pad(old, [(0, size) for size in more]) if any(more) else old

  return jax.tree.map(widened, state, larger)


def row_keys(seed: int, rows: Int[np.ndarray, 'B']) -> Key[Array, 'B']:
  """What the draws of each row are made from: of the seed and the number of the row alone."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.asarray(rows))


@functools.partial(jax.jit, static_argnums=0, donate_argnames='state')
def prefill(
  model: LanguageModel,
  params: Params,
  draft: Draft,
  state: State,
  tokens: Int[Array, 'B T'],
  layout: Layout,
  start: Int[Array, 'B'],
  count: Int[Array, 'B'],
) -> tuple[State, Float[Array, 'B V']]:
  """Reads the first `count` of the tokens behind the first `start` of each text; gives the logits of the next token.

  What was held behind `start` is forgotten. The state holds all of each text in its cache, until `begin`.
  """
  cache = state.cache.rewound(start)
  hidden, unembed, cache = _read(model, params, tokens, layout, cache)
  last = jnp.take_along_axis(hidden, count[:, None, None] - 1, axis=1)[:, 0]
  state = dataclasses.replace(
    state,
    cache=cache.rewound(start + count),
    text=written(state.text, tokens, start),
    draft=draft.read(state.draft, tokens, layout, start, count, last),
  )
  return state, unembed(last)


@functools.partial(jax.jit, static_argnums=1)
def repeated(tree: Any, times: int) -> Any:
  """Every row of arrays as often, one after the other."""
  return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), tree)


@functools.partial(jax.jit, static_argnums=0, donate_argnames='state')
def begin(
  manner: Manner,
  state: State,
  logits: Float[Array, 'B V'],
  keys: Key[Array, 'B'],
  stops: Bool[Array, 'V'],
  limit: Int[Array, ''],
) -> tuple[State, Drawn]:
  """Draws the first token after texts that were read."""
  rows, end = len(keys), state.cache.length
  state = dataclasses.replace(state, keys=keys, count=jnp.zeros_like(end), done=jnp.zeros(rows, bool))
  seen = Seen(state.text, jnp.arange(state.text.shape[1]) < end[:, None])
  token = manner.acceptance.first(manner.sampling, _keys(state, 0), manner.sampling.processed(logits, seen))
  state = dataclasses.replace(state, text=written(state.text, token[:, None], end))
  log_probability = _log_probability(logits[:, None], jnp.zeros_like(end)[:, None], token[:, None])
  valid = jnp.ones((rows, 1), bool)
  return _added(state, _nothing(rows, 1), token[:, None], log_probability, valid, stops, limit)[:2]


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnames='state')
def decode_tokens(
  model: LanguageModel,
  manner: Manner,
  params: Params,
  draft: Draft,
  state: State,
  done: Bool[Array, 'B'],
  stops: Bool[Array, 'V'],
  limit: Int[Array, ''],
) -> tuple[State, Drawn]:
  """Writes until a row has `stride` new tokens or all are done: by a stop id, or having drawn `limit` tokens in all."""

  def unfinished(carry: tuple[State, Drawn]) -> Bool[Array, '']:
    state, drawn = carry
    return ~jnp.all(state.done) & (jnp.max(drawn.count) < manner.stride)

  def body(carry: tuple[State, Drawn]) -> tuple[State, Drawn]:
    return _step(model, manner, params, draft, *carry, stops, limit)

  state = dataclasses.replace(state, done=state.done | done)
  return jax.lax.while_loop(unfinished, body, (state, _nothing(len(done), manner.stride + draft.tree.max_depth)))


def _step(
  model: LanguageModel,
  manner: Manner,
  params: Params,
  draft: Draft,
  state: State,
  drawn: Drawn,
  stops: Bool[Array, 'V'],
  limit: Int[Array, ''],
) -> tuple[State, Drawn]:
  """Proposes candidates, reads them all, keeps some and draws the token after them."""
  tree, sampling, at = draft.tree, manner.sampling, state.cache.length
  text = Text(state.text, at, at + jnp.maximum(limit - state.count, 0))
  draft_keys, accept_keys = jnp.moveaxis(jax.vmap(jax.random.split)(_keys(state, 1)), 1, 0)
  proposal = draft.propose(state.draft, text, sampling, draft_keys)
  nodes = jnp.concatenate([text.ending(1), proposal.tokens], axis=1)

  layout = node_layout(state.cache, np.array(tree.depths), text.end)
  hidden, unembed, cache = _read_tree(model, params, tree, nodes, layout, state.cache)
  logits = unembed(hidden)
  weighed = _processed(sampling, tree, logits, nodes, text)
  accepted = manner.acceptance(sampling, tree, weighed, nodes, proposal.log_q, _keys(state, 0), accept_keys)

  path = jnp.asarray(tree.paths)[accepted.node]
  depth = jnp.asarray(tree.depths)[accepted.node]
  places = jnp.arange(tree.max_depth + 1)
  following = jnp.take_along_axis(nodes, jnp.roll(path, -1, axis=1), axis=1)
  tokens = jnp.where(places == depth[:, None], accepted.token[:, None], following)
  log_probabilities = _log_probability(logits, path, tokens)

  cache = cache if tree.is_chain else _moved(state.cache, cache, path)
  last = jnp.take_along_axis(hidden, accepted.node[:, None, None], axis=1)[:, 0]
  text_tokens = written(state.text, tokens, at + 1)
  was_done = state.done
  state = dataclasses.replace(state, cache=cache, text=text_tokens, draft=draft.follow(proposal.state, last))
  state, drawn, added = _added(state, drawn, tokens, log_probabilities, places <= depth[:, None], stops, limit)
  state = dataclasses.replace(state, cache=state.cache.rewound(at + added))
  weighed_candidates = jnp.minimum(depth + 1, tree.max_depth)
  count = lambda old, new: old + jnp.where(was_done, 0, new)
  return state, dataclasses.replace(
    drawn,
    steps=count(drawn.steps, 1),
    tried=count(drawn.tried, weighed_candidates),
    kept=count(drawn.kept, depth),
  )


def _read(
  model: LanguageModel, params: Params, tokens: Int[Array, 'B T'], layout: Layout, cache: Cache
) -> tuple[Float[Array, 'B T D'], Any, Cache]:
  result: Any = model.apply(params, tokens, layout, cache, method='features')
  return result


def _read_tree(
  model: LanguageModel, params: Params, tree: Tree, nodes: Int[Array, 'B N'], layout: Layout, cache: Cache
) -> tuple[Float[Array, 'B N D'], Any, Cache]:
  """Reads candidates: in a chain each sees those before it, in a tree those that it descends from."""
  if tree.is_chain:
    return _read(model, params, nodes, layout, cache)
  mask = masks.Tree(tree.parents)
  patterns = tuple(pattern.under(mask) for pattern in model.config.attention)
  model = model.copy(config=dataclasses.replace(model.config, attention=patterns))
  numbers = jnp.broadcast_to(1 + jnp.arange(len(tree)), nodes.shape)
  held = dataclasses.replace(cache.layout, node=jnp.zeros_like(cache.layout.order))
  return _read(model, params, nodes, dataclasses.replace(layout, node=numbers), dataclasses.replace(cache, layout=held))


def _moved(before: Cache, cache: Cache, path: Int[Array, 'B T']) -> Cache:
  """The cache with the nodes of a path where a text's next tokens stand, instead of the whole tree."""
  at = before.length
  slots = at[:, None] + path
  layers = tuple(layer.moved(slots, at, cache.layout) for layer in cache.layers)
  # They stand in the layout as the nodes do: the first of the path at the root's place.
  layout = jax.tree.map(
    lambda old, new: written(old, jnp.take_along_axis(new, slots, axis=1), at),
    before.layout,
    dataclasses.replace(cache.layout, node=None),
  )
  return Cache(layers, layout, cache.length)


def _processed(
  sampling: Sampling, tree: Tree, logits: Float[Array, 'B N V'], nodes: Int[Array, 'B N'], text: Text
) -> Float[Array, 'B N V']:
  """What the processors make of the logits after each node, which follows the text and the path to it."""
  if not sampling.processors:
    return logits
  count = len(tree)
  paths = nodes[:, tree.paths]  # [B, N, depth + 1]
  repeat = lambda x: jnp.repeat(x, count, axis=0)
  last = repeat(text.last)
  tokens = written(repeat(text.tokens), paths.reshape(-1, paths.shape[-1]), last)
  ends = last + jnp.tile(jnp.asarray(tree.depths), len(nodes))
  seen = Seen(tokens, jnp.arange(tokens.shape[1]) <= ends[:, None])
  return sampling.processed(logits.reshape(-1, logits.shape[-1]), seen).reshape(logits.shape)


def _added(
  state: State,
  drawn: Drawn,
  tokens: Int[Array, 'B T'],
  log_probabilities: Float[Array, 'B T'],
  valid: Bool[Array, 'B T'],
  stops: Bool[Array, 'V'],
  limit: Int[Array, ''],
) -> tuple[State, Drawn, Int[Array, 'B']]:
  """New tokens put down, up to the first that ends its text; and how many those are."""
  places = jnp.arange(tokens.shape[1])
  stopping = stops[tokens]
  before = jnp.cumsum(stopping, axis=1) - stopping
  valid = valid & ~state.done[:, None] & (before == 0) & (state.count[:, None] + places < limit)
  added = jnp.sum(valid, axis=1)
  count = state.count + added
  done = state.done | jnp.any(valid & stopping, axis=1) | (count >= limit)
  put = lambda old, new: written(jnp.asarray(old), new, jnp.asarray(drawn.count))
  drawn = dataclasses.replace(
    drawn,
    tokens=put(drawn.tokens, tokens),
    log_probabilities=put(drawn.log_probabilities, log_probabilities),
    count=drawn.count + added,
    done=done,
  )
  return dataclasses.replace(state, count=count, done=done), drawn, added


def _nothing(rows: int, length: int) -> Drawn:
  tokens, zeros = jnp.zeros((rows, length), jnp.int32), jnp.zeros(rows, jnp.int32)
  return Drawn(tokens, tokens.astype(jnp.float32), zeros, zeros.astype(bool), zeros, zeros, zeros)


def _keys(state: State, stream: int) -> Key[Array, 'B']:
  """Of row and place alone: stream 0 draws the model's tokens, stream 1 all that speculation takes besides."""
  number = state.count.astype(jnp.uint32) + jnp.uint32(stream << 31)
  return jax.vmap(jax.random.fold_in)(state.keys, number)


def _log_probability(
  logits: Float[Array, 'B N V'], nodes: Int[Array, 'B T'], tokens: Int[Array, 'B T']
) -> Float[Array, 'B T']:
  """Of tokens after nodes, under the model itself: temperature 1, nothing processed or cut."""
  rows = jnp.arange(len(logits))[:, None]
  return logits[rows, nodes, tokens] - jax.nn.logsumexp(logits, axis=-1)[rows, nodes]
