"""Beam search: of each prompt the likeliest texts are written on side by side, and the best that ended are returned."""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from gpt_jax.decoding.drafts import Alone, node_layout
from gpt_jax.decoding.generate import Finish, Request
from gpt_jax.decoding.sampling import Processor, Sampling, Seen
from gpt_jax.decoding.steps import Manner, Prompt, State, Tokens, bucket, empty, padded, prefill, repeated, unstacked
from gpt_jax.models.caches import Cache, KeyValues, written
from gpt_jax.models.heads import LanguageModel
from gpt_jax.types import Params, UserError


@dataclasses.dataclass(frozen=True)
class Beam:
  """One of the texts found for a prompt."""

  tokens: Tokens
  """With the stop id it ended on."""
  log_probabilities: Float[np.ndarray, '_']
  """Of each token under the model itself."""
  log_probability: float
  """The sum of what the search went by: log-probabilities of processed logits."""
  score: float
  """log_probability / length ** length_penalty: the higher, the better."""
  finish: Finish
  """A stop id was written, or max_new_tokens were."""


def beam_search(
  model: LanguageModel,
  params: Params,
  prompts: Sequence[Prompt],
  *,
  max_new_tokens: int,
  num_beams: int,
  length_penalty: float | int = 1.0,
  early_stopping: bool | str = False,
  stop_ids: Sequence[int] = (),
  processors: tuple[Processor, ...] = (),
  num_return_sequences: int = 1,
  context: int | None = None,
) -> list[list[Beam]]:
  """The likeliest texts after each prompt, best first, as far as `num_beams` texts side by side can tell.

  Each step writes the `num_beams` likeliest texts of a prompt on by one token. Those of the `num_beams` best new texts
  that end are kept, of all so far as many as the best; the best that do not end are written on. So what ends takes no
  place from what goes on. At max_new_tokens every text ends. With one beam this is greedy decoding.

  The score is that of Hugging Face's transformers: log p(text) / n^length_penalty, n new tokens with the stop id; above
  0 it favours long texts, below 0 short ones. GPT-3's alpha = 0.6 (section 2.4, with 4 beams) is an exponent of
  (5 + n) / 6 instead (Wu et al. 2016, equation 14), which orders short texts a little differently.

  A prompt is done when `num_beams` texts have ended and, by `early_stopping`:
    False: the best running text, scored as if it ended here, does not beat the worst of them. With a penalty above 0 a
      longer text could: this is transformers' heuristic.
    True: at once.
    'never': no running text can, however long it gets.

  Prompts may differ in length; each is read once. Processors change logits as for greedy text, then log p is taken
  (in transformers: `renormalize_logits`). `context` is as in `generate`. A program is compiled for each number of
  prompts and of beams, bucket of lengths and tuple of processors, and used again.

  Returns:
    Of each prompt `num_return_sequences` texts; fewer only where there are no more, as after one token of a vocabulary
    smaller than that.

  Raises:
    UserError: an empty prompt, an unknown token, a text longer than the context, a number outside its range, or no
      token that may follow.
  """
  model, params = unstacked(model, params)
  request = Request(max_new_tokens, Manner(), stop_ids, (), None, Alone())
  request.check(model, prompts, context)
  if num_beams < 1:
    raise UserError(f'num_beams = {num_beams} must be at least 1')
  if not 1 <= num_return_sequences <= num_beams:
    raise UserError(f'num_return_sequences = {num_return_sequences} must be from 1 to num_beams = {num_beams}')
  if early_stopping != 'never' and not isinstance(early_stopping, bool):
    raise UserError(f"early_stopping = {early_stopping!r} must be False, True or 'never'")
  # 1e26 is far from the end of float32 even if it divides.
  if not abs(length_penalty) * math.log(max(max_new_tokens, 2)) < 60:
    raise UserError(f'length_penalty = {length_penalty} is out of range; 0 is none, 1 divides by the length')
  ends = Ends(
    request.stops(model.config.vocab_size),
    np.array(max_new_tokens, np.int32),
    np.array(length_penalty, np.float32),
    np.array(early_stopping is True),
    np.array(early_stopping == 'never' and length_penalty > 0),
  )
  tokens, layout, counts = padded(prompts)
  new = bucket(max_new_tokens)
  state = empty(model, Alone(), len(prompts), tokens.shape[1] + new)
  state, logits = prefill(model, params, Alone(), state, tokens, layout, np.zeros_like(counts), counts)
  found, scores = jax.device_get(
    search(model, Sampling(processors=tuple(processors)), num_beams, new, params, state, logits, ends)
  )

  def beam(row: int, place: int) -> Beam:
    length = int(found.count[row, place])
    tokens, log_probabilities = (x[row, place, :length] for x in (found.tokens, found.log_probabilities))
    finish: Finish = 'stop' if ends.stops[tokens[-1]] else 'length'
    return Beam(tokens, log_probabilities, float(found.total[row, place]), float(scores[row, place]), finish)

  places = range(num_return_sequences)
  there = np.isfinite(found.total)
  if not there[:, 0].all():
    raise UserError(
      f'prompts[{int(np.argmin(there[:, 0]))}] can not be followed by anything: the logits are not numbers, or the '
      'processors leave no token'
    )
  return [[beam(row, place) for place in places if there[row, place]] for row in range(len(prompts))]


@struct.dataclass
class Ends:
  """What ends texts, and the search; arrays, so that no program is compiled for their values."""

  stops: Bool[Array | np.ndarray, 'V']
  limit: Int[Array | np.ndarray, '']
  length_penalty: Float[Array | np.ndarray, '']
  when_full: Bool[Array | np.ndarray, '']
  """A prompt is done once as many texts have ended as there are beams."""
  at_limit: Bool[Array | np.ndarray, '']
  """What a running text can still reach is reckoned with the greatest length, not with the one it has."""


@struct.dataclass
class Texts:
  """W texts of each prompt, as far as they are new; where there is none, its total is -inf."""

  tokens: Int[Array, 'B W N']
  log_probabilities: Float[Array, 'B W N']
  total: Float[Array, 'B W']
  count: Int[Array, 'B W']

  def at(self, index: Int[Array, 'B _']) -> 'Texts':
    """Those of these places."""
    rows = jnp.arange(len(index))[:, None]
    return jax.tree.map(lambda x: x.at[rows, index].get(mode='promise_in_bounds', wrap_negative_indices=False), self)

  def slots(self, some: slice) -> 'Texts':
    return jax.tree.map(lambda x: x[:, some], self)

  def score(self, length_penalty: Float[Array | np.ndarray, '']) -> Float[Array, 'B W']:
    return self.total / jnp.maximum(self.count, 1) ** length_penalty


@struct.dataclass
class Search:
  """All prompts' searches, the same number of tokens into each."""

  running: Texts
  """The best first; all but the last token of each is in the cache."""
  finished: Texts
  """The best first."""
  done: Bool[Array, 'B']
  cache: Cache
  """Of every beam of every prompt a row."""
  step: Int[Array, '']
  """New tokens of the running texts."""


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def search(
  model: LanguageModel,
  sampling: Sampling,
  num_beams: int,
  new: int,
  params: Params,
  state: State,
  logits: Float[Array, 'B V'],
  ends: Ends,
) -> tuple[Texts, Float[Array, 'B W']]:
  """Searches on from prompts that were read, whose next tokens have these logits; `new` tokens of each have room.

  Gives the texts that ended, the best first, and their scores; of `sampling` the processors count alone.
  """
  rows = len(logits)
  # Here and not before: what is made inside is written in place, what is handed in would be copied.
  (prompt, first, cache), logits = repeated(((state.text, state.cache.length, state.cache), logits), num_beams)
  none = Texts(
    jnp.zeros((rows, num_beams, new), jnp.int32),
    jnp.zeros((rows, num_beams, new)),
    jnp.full((rows, num_beams), -jnp.inf),
    jnp.zeros((rows, num_beams), jnp.int32),
  )
  # All beams of a prompt are alike as yet: one of them counts.
  begun = dataclasses.replace(none, total=none.total.at[:, 0].set(0))
  start = Search(begun, none, jnp.zeros(rows, bool), cache, jnp.zeros((), jnp.int32))

  def choose(searched: Search, logits: Float[Array, 'M V']) -> tuple[Search, Int[Array, 'B W']]:
    weighed = under_model = jax.nn.log_softmax(logits)
    if sampling.processors:
      text = written(prompt, searched.running.tokens.reshape(-1, new), first)
      valid = jnp.arange(text.shape[1]) < (first + searched.step)[:, None]
      weighed = jax.nn.log_softmax(sampling.processed(logits, Seen(text, valid)))
    return _chosen(searched, under_model, weighed, ends)

  def body(searched: Search) -> Search:
    last = jax.lax.dynamic_index_in_dim(searched.running.tokens, searched.step - 1, axis=2, keepdims=False)
    layout = node_layout(searched.cache, np.zeros(1, np.int32), first + ends.limit)
    result: Any = model.apply(params, last.reshape(-1, 1), layout, searched.cache)
    searched, parents = choose(searched, result[0][:, 0])
    return dataclasses.replace(searched, cache=_reordered(result[1], parents, first, new))

  searched = jax.lax.while_loop(lambda searched: ~jnp.all(searched.done), body, choose(start, logits)[0])
  return searched.finished, searched.finished.score(ends.length_penalty)


def _chosen(
  searched: Search, under_model: Float[Array, 'M V'], weighed: Float[Array, 'M V'], ends: Ends
) -> tuple[Search, Int[Array, 'B W']]:
  """The search one token further, its cache as it was; and the beam that each running text goes on from.

  Both are log-probabilities of the next token: the model's own, and those that the search goes by.
  """
  running, step = searched.running, searched.step + 1
  rows, num_beams = running.total.shape
  vocabulary = weighed.shape[1]
  totals = running.total[..., None] + weighed.reshape(rows, num_beams, vocabulary)
  ending = ends.stops | (step >= ends.limit)
  # Two looks at the candidates, and not one at so many that some must go on: that many would depend on the stop ids.
  best = lambda totals: jax.lax.top_k(totals.reshape(rows, -1), num_beams)
  found = best(jnp.where(ending, -jnp.inf, totals)), best(totals)
  total, place = (jnp.concatenate(x, axis=1) for x in zip(*found, strict=True))

  parents, token = place // vocabulary, place % vocabulary
  own = under_model.reshape(rows, -1)[jnp.arange(rows)[:, None], place]
  before, last = running.at(parents), jnp.arange(running.tokens.shape[-1]) == step - 1
  texts = Texts(
    jnp.where(last, token[..., None], before.tokens),
    jnp.where(last, own[..., None], before.log_probabilities),
    total,
    before.count + 1,
  )
  going, likeliest = texts.slots(slice(num_beams)), texts.slots(slice(num_beams, None))

  ended = ending[token[:, num_beams:]] & ~searched.done[:, None]
  ended = dataclasses.replace(likeliest, total=jnp.where(ended, likeliest.total, -jnp.inf))
  finished = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), searched.finished, ended)
  scores, order = jax.lax.top_k(finished.score(ends.length_penalty), num_beams)
  worst = scores[:, -1]
  length = jnp.where(ends.at_limit, ends.limit, step)
  # Any running text is better than none, -inf; but where none runs, -inf again, there is none to wait for.
  better = going.total[:, 0] / length**ends.length_penalty > worst
  done = searched.done | (jnp.isfinite(worst) & ends.when_full) | ~better
  return Search(going, finished.at(order), done, searched.cache, step), parents[:, :num_beams]


def _reordered(cache: Cache, parents: Int[Array, 'B W'], first: Int[Array, 'M'], new: int) -> Cache:
  """The cache in which each beam has what its parent read behind the first tokens, the prompt's.

  The prompt is the same for all beams of a row, and so is where tokens stand: neither is moved.
  """
  rows, num_beams = parents.shape
  if num_beams == 1:
    return cache
  of_rows = (num_beams * jnp.arange(rows)[:, None] + parents).reshape(-1, 1, 1)
  slots = (first[:, None] + jnp.arange(new))[:, None]
  heads = lambda layer: jnp.arange(layer.shape[1])[:, None]
  among = lambda layer: layer.at[of_rows, heads(layer), slots].get(
    mode='promise_in_bounds', wrap_negative_indices=False
  )

  def move(layer: KeyValues) -> KeyValues:
    if layer.is_ring(cache.layout):  # of which no part is the prompt's
      return jax.tree.map(lambda x: x[of_rows[:, 0, 0]], layer)
    return jax.tree.map(lambda x: written(x, among(x), first, axis=2), layer)

  layers = tuple(map(move, cache.layers))
  return dataclasses.replace(cache, layers=layers)
