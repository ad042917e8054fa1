"""Who proposes the tokens that a model then reads at once: a smaller model, the text itself, counts, Medusa's heads."""

from collections.abc import Callable
import dataclasses
from typing import Any, Protocol, runtime_checkable

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer, Key
import numpy as np

from gpt_jax.decoding.sampling import Sampling, Seen
from gpt_jax.decoding.tree import Tree, chain
from gpt_jax.models.caches import SPARE, Cache, written
from gpt_jax.models.heads import LanguageModel, Medusa
from gpt_jax.models.transformer import empty_cache
from gpt_jax.types import Layout, Params, UserError


@struct.dataclass
class Text:
  """What was written so far, prompt included: a token's slot is its place in the text."""

  tokens: Int[Array, 'B S']
  last: Int[Array, 'B']
  """The slot of the last token, which nobody has read yet."""
  end: Int[Array, 'B']
  """How many tokens the text may have."""

  def seen(self) -> Seen:
    return Seen(self.tokens, jnp.arange(self.tokens.shape[1]) <= self.last[:, None])

  def ending(self, length: int) -> Int[Array, 'B T']:
    """The last tokens; a shorter text begins with its first one again."""
    slots = self.last[:, None] + jnp.arange(1 - length, 1)
    return jnp.take_along_axis(self.tokens, jnp.maximum(slots, 0), axis=1)

  def followed_by(self, token: Int[Array, 'B']) -> 'Text':
    return Text(written(self.tokens, token[:, None], self.last + 1), self.last + 1, self.end)


@struct.dataclass
class Proposal:
  """Candidates for what follows a text."""

  tokens: Int[Array, 'B M']
  """Of the nodes of a tree but its root, the text's last token."""
  log_q: Float[Array, 'B M V'] | None
  """What each was drawn from; None: it was not drawn by chance."""
  state: Any
  """What the draft keeps from step to step."""


@runtime_checkable
class Draft(Protocol):
  """A pytree of what proposing takes; its tree is not of arrays, so that programs are compiled for it."""

  @property
  def tree(self) -> Tree: ...

  def check(self, model: LanguageModel, length: int) -> None:
    """Raises UserError where it does not fit the model, or can't read a text of `length` tokens."""

  def empty(self, rows: int, length: int) -> Any:
    """The state before anything is read, with room for `length` tokens a row."""

  def read(
    self,
    state: Any,
    tokens: Int[Array, 'B T'],
    layout: Layout,
    start: Int[Array, 'B'],
    count: Int[Array, 'B'],
    last: Float[Array, 'B D'],
  ) -> Any:
    """Reads the first `count` of `tokens` behind the first `start`; `last` is what the model makes of the last one."""

  def propose(self, state: Any, text: Text, sampling: Sampling, keys: Key[Array, 'B']) -> Proposal: ...

  def follow(self, state: Any, last: Float[Array, 'B D']) -> Any:
    """The state after a step; `last` is what the model makes of the last token that it kept."""


class Stateless:
  """Of drafts that keep nothing."""

  def check(self, model: LanguageModel, length: int) -> None:
    del model, length

  def empty(self, rows: int, length: int) -> None:
    del rows, length

  def read(self, state: Any, tokens: Any, layout: Any, start: Any, count: Any, last: Any) -> Any:
    del tokens, layout, start, count, last
    return state

  def follow(self, state: Any, last: Any) -> Any:
    del last
    return state


@struct.dataclass
class Alone(Stateless):
  """No draft: the model writes a token a step."""

  @property
  def tree(self) -> Tree:
    return chain(0)

  def propose(self, state: Any, text: Text, sampling: Sampling, keys: Key[Array, 'B']) -> Proposal:
    del sampling, keys
    return Proposal(jnp.zeros((len(text.last), 0), jnp.int32), None, state)


@struct.dataclass
class PromptLookup(Stateless):
  """What followed the last time that the text ended alike (prompt lookup decoding, Saxena 2023)."""

  length: int = struct.field(pytree_node=False, default=10)
  """Tokens to propose."""
  max_ngram: int = struct.field(pytree_node=False, default=3)
  """Tokens of the ending to look for; of places that fit alike, the latest counts."""

  @property
  def tree(self) -> Tree:
    return chain(self.length)

  def propose(self, state: Any, text: Text, sampling: Sampling, keys: Key[Array, 'B']) -> Proposal:
    del sampling, keys
    slots = jnp.arange(text.tokens.shape[1])
    alike, matched = jnp.ones(text.tokens.shape, bool), jnp.zeros(text.tokens.shape, jnp.int32)
    for back in range(self.max_ngram):
      wanted = jnp.take_along_axis(text.tokens, jnp.maximum(text.last[:, None] - back, 0), axis=1)
      alike &= (jnp.roll(text.tokens, back, axis=1) == wanted) & (slots >= back)
      matched += alike
    matched = jnp.where(slots < text.last[:, None], matched, -1)
    found = jnp.argmax(matched * len(slots) + slots, axis=1)[:, None]
    # What goes round in circles goes on so.
    period = jnp.maximum(text.last[:, None] - found, 1)
    tokens = jnp.take_along_axis(text.tokens, found + 1 + jnp.arange(self.length) % period, axis=1)
    return Proposal(tokens, None, state)


@struct.dataclass
class Bigram(Stateless):
  """The tokens that followed a token most often in some corpus."""

  tokens: Int[Array, 'V K']
  """The likeliest first."""
  log_probabilities: Float[Array, 'V K']
  length: int = struct.field(pytree_node=False, default=3)

  @property
  def tree(self) -> Tree:
    return chain(self.length)

  def check(self, model: LanguageModel, length: int) -> None:
    del length
    _same_vocabulary(len(self.tokens), model)

  def propose(self, state: Any, text: Text, sampling: Sampling, keys: Key[Array, 'B']) -> Proposal:
    def following(number: Any, text: Text, state: Any) -> tuple[Float[Array, 'B V'], Any]:
      last = text.ending(1)[:, 0]
      none = jnp.full((len(last), len(self.tokens)), -jnp.inf)
      rows = jnp.arange(len(last))[:, None]
      return none.at[rows, self.tokens[last]].set(self.log_probabilities[last]), state

    return _one_by_one(following, self.length, state, text, sampling, keys)


def count_bigrams(stream: Integer[np.ndarray, ' stream'], vocab_size: int, *, length: int = 3, kept: int = 8) -> Bigram:
  """A bigram draft of the pairs in a stream of tokens, with the `kept` most frequent followers of each token.

  A token never seen is followed by token 0 and others that were never counted, by order.
  """
  pairs, counts = np.unique(stream[:-1].astype(np.int64) * vocab_size + stream[1:], return_counts=True)
  first, second = np.divmod(pairs, vocab_size)
  order = np.lexsort((second, -counts, first))
  first, second, counts = first[order], second[order], counts[order]
  rank = np.arange(len(first)) - np.searchsorted(first, first)
  within = rank < kept
  tokens = np.tile(np.arange(kept, dtype=np.int32), (vocab_size, 1))
  number = np.zeros((vocab_size, kept))
  tokens[first[within], rank[within]] = second[within]
  number[first[within], rank[within]] = counts[within]
  # Slots that no pair fills name tokens which may be there already: they have no probability.
  number[~np.any(number, axis=1), 0] = 1
  with np.errstate(divide='ignore'):
    log_probabilities = np.log(number / number.sum(axis=1, keepdims=True))
  return Bigram(jnp.asarray(tokens), jnp.asarray(log_probabilities, jnp.float32), length)


@struct.dataclass
class ModelDraft:
  """A language model of the same vocabulary, unstacked (see `steps.unstacked`) and smaller."""

  params: Params
  model: LanguageModel = struct.field(pytree_node=False)
  length: int = struct.field(pytree_node=False, default=4)
  """Tokens to propose."""

  @property
  def tree(self) -> Tree:
    return chain(self.length)

  def check(self, model: LanguageModel, length: int) -> None:
    positions = self.model.config.positions
    _same_vocabulary(self.model.config.vocab_size, model)
    if positions is not None and positions.length < length:
      raise UserError(f'the draft has {positions.length} learned positions, but a text may have {length} tokens')

  def empty(self, rows: int, length: int) -> Cache:
    return empty_cache(self.model.config, rows, length, max(SPARE, 2 * self.length + 4))

  def read(
    self,
    state: Cache,
    tokens: Int[Array, 'B T'],
    layout: Layout,
    start: Int[Array, 'B'],
    count: Int[Array, 'B'],
    last: Any,
  ) -> Cache:
    del last
    result: Any = self.model.apply(self.params, tokens, layout, state.rewound(start), method='features')
    return result[2].rewound(start + count)

  def propose(self, state: Cache, text: Text, sampling: Sampling, keys: Key[Array, 'B']) -> Proposal:
    # The token before the last was not read yet if all of the last proposal was kept: it is read again in any case, and
    # stands where it stood, if it did.
    known = dataclasses.replace(state, length=jnp.minimum(state.length, text.last))
    again = node_layout(known, (text.last - 1 - known.length)[:, None] + np.arange(2), text.end)

    def following(number: Any, text: Text, cache: Cache) -> tuple[Float[Array, 'B V'], Cache]:
      first = isinstance(number, int)  # it is no loop's
      layout = again if first else node_layout(cache, np.zeros(1, np.int32), text.end)
      result: Any = self.model.apply(self.params, text.ending(2 if first else 1), layout, cache, method='features')
      hidden, unembed, cache = result
      return unembed(hidden[:, -1]), cache

    return _one_by_one(following, self.length, state.rewound(text.last - 1), text, sampling, keys)

  def follow(self, state: Cache, last: Any) -> Cache:
    del last
    return state


def first_layers(model: LanguageModel, params: Params, number: int, length: int = 4) -> ModelDraft:
  """The model's own first layers as its draft: no parameters but its own.

  Raises:
    UserError: the model, which must be unstacked, has no so many layers, or `number` cuts a period of its patterns.
  """
  config = model.config
  if not 0 < number < config.num_layers or number % len(config.attention):
    raise UserError(
      f'draft of {number} layers: the model has {config.num_layers}, and patterns in turns of {len(config.attention)}'
    )
  periods = number // len(config.attention)
  inner = dict(params['params'])
  inner['transformer'] = {
    name: branch
    for name, branch in inner['transformer'].items()
    if not name.startswith('blocks_') or int(name.removeprefix('blocks_')) < periods
  }
  smaller = model.copy(config=dataclasses.replace(config, num_layers=number))
  return ModelDraft({'params': inner}, smaller, length)


@struct.dataclass
class MedusaDraft:
  """Heads that guess the tokens after the next one from the same hidden state (Medusa, section 3.1)."""

  params: Params
  heads: Medusa = struct.field(pytree_node=False)
  tree: Tree = struct.field(pytree_node=False)
  vocabulary: Int[Array, 'G'] | None = None
  """The tokens that the heads tell apart; None: all."""

  def check(self, model: LanguageModel, length: int) -> None:
    del length
    ours, theirs = self.heads.config, model.config
    if (ours.vocab_size, ours.model_dim) != (theirs.vocab_size, theirs.model_dim):
      raise UserError(
        f'the Medusa heads are of a model with {ours.vocab_size} tokens and width {ours.model_dim}, this one has '
        f'{theirs.vocab_size} and {theirs.model_dim}; use the model they were trained on'
      )

  def empty(self, rows: int, length: int) -> Float[Array, 'B D']:
    del length
    return jnp.zeros((rows, self.heads.config.model_dim), self.heads.config.dtype)

  def read(
    self, state: Any, tokens: Any, layout: Any, start: Any, count: Any, last: Float[Array, 'B D']
  ) -> Float[Array, 'B D']:
    del state, tokens, layout, start, count
    return last

  def propose(self, state: Float[Array, 'B D'], text: Text, sampling: Sampling, keys: Key[Array, 'B']) -> Proposal:
    depths, choices = self.tree.depths[1:], np.array(self.tree.choices[1:], int)
    result: Any = self.heads.apply(self.params, state)
    logits = result[:, : self.tree.max_depth]
    if sampling.greedy or not self.tree.is_chain:
      likeliest = jax.lax.top_k(logits, int(choices.max(initial=0)) + 1)[1]
      guesses = likeliest[:, depths - 1, choices]
      return Proposal(self._tokens(guesses).astype(jnp.int32), None, state)
    following = lambda number, text, state: (self._of_all_tokens(logits[:, number]), state)
    return _one_by_one(following, self.tree.max_depth, state, text, sampling, keys)

  def _tokens(self, guesses: Int[Array, 'B M']) -> Int[Array, 'B M']:
    return guesses if self.vocabulary is None else self.vocabulary[guesses]

  def _of_all_tokens(self, logits: Float[Array, 'B G']) -> Float[Array, 'B V']:
    if self.vocabulary is None:
      return logits
    return jnp.full((len(logits), self.heads.config.vocab_size), -jnp.inf).at[:, self.vocabulary].set(logits)

  def follow(self, state: Any, last: Float[Array, 'B D']) -> Float[Array, 'B D']:
    del state
    return last


def node_layout(cache: Cache, depths: Int[Array | np.ndarray, 'N'] | Int[Array, 'B N'], end: Int[Array, 'B']) -> Layout:
  """Of candidates so many places behind the first that follows what a cache has read, of texts of up to `end` tokens.

  They stand at the places that follow in the text or, where the last token stands in a blank, in that. What would stand
  behind the end stands at it: it is never kept, and a model of learned positions has no such place.
  """
  first, ahead = cache.length[:, None], jnp.asarray(depths)
  last = lambda x: jnp.take_along_axis(x, jnp.maximum(first - 1, 0), axis=1)
  position, block = jnp.where(first > 0, last(cache.layout.position), -1), last(cache.layout.block)
  inside = (block > 0) & (first > 0)
  within = lambda place: jnp.minimum(place, end[:, None] - 1)
  order = first + ahead
  return Layout(
    order,
    within(jnp.where(inside, position, position + 1 + ahead)),
    within(jnp.where(inside, block + 1 + ahead, 0)),
    jnp.ones_like(order),
    jnp.zeros(order.shape, bool),
  )


Following = Callable[[Any, Text, Any], tuple[Float[Array, 'B V'], Any]]
"""The logits of what follows a text, by the number of the candidate from 0, and the state."""


def _one_by_one(
  following: Following, length: int, state: Any, text: Text, sampling: Sampling, keys: Key[Array, 'B']
) -> Proposal:
  """Draws a chain of candidates, as `sampling` does."""

  def draw(number: Any, text: Text, state: Any) -> tuple[tuple[Text, Any], tuple[Int[Array, 'B'], Any]]:
    logits, state = following(number, text, state)
    logits = sampling.processed(logits, text.seen())
    token = sampling.draw(jax.vmap(jax.random.fold_in, (0, None))(keys, number), logits).astype(jnp.int32)
    log_q = None if sampling.greedy else sampling.log_probabilities(logits)
    return (text.followed_by(token), state), (token, log_q)

  # The first apart, as it may read more; the others in a loop, as a large model takes long to compile.
  carry, first = draw(0, text, state)
  (_, state), others = jax.lax.scan(lambda carry, number: draw(number, *carry), carry, jnp.arange(1, length))
  tokens, log_q = jax.tree.map(
    lambda one, more: jnp.concatenate([one[:, None], jnp.moveaxis(more, 0, 1)], axis=1), first, others
  )
  return Proposal(tokens, log_q, state)


def _same_vocabulary(size: int, model: LanguageModel) -> None:
  if size != model.config.vocab_size:
    raise UserError(f'the draft has a vocabulary of {size} tokens, the model {model.config.vocab_size}: use one of it')
