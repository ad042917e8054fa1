"""Blanks as questions: how well a model finds what stood in one, and which of several answers it would put there."""

from collections.abc import Iterable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np
from scipy import stats

from gpt_jax import hosts
from gpt_jax.data.marks import Marks
from gpt_jax.decoding.infilling import opened
from gpt_jax.decoding.steps import Placed, padded
from gpt_jax.models.heads import LanguageModel
from gpt_jax.objectives.likelihood import cross_entropy, next_token
from gpt_jax.objectives.policy import response_logprobs
from gpt_jax.types import Batch, Params, UserError


@dataclasses.dataclass(frozen=True)
class Filling:
  """How well blanks of some texts were filled, one blank a text."""

  loss: float
  """Nats a token of what stood there, those before it in the blank known."""
  loss_given_length: float
  """-log p(x, end) + log p(n) a token: by Bayes' rule -log p(x | n), of a model told that n stood there, or more.

  Lengths are drawn without regard to the text, so the mean of -log p(n) is not less than their entropy, which is taken
  off for it. Of a model that knows no ends it is the loss.
  """
  accuracy: float
  """Of those tokens, how many are the likeliest."""
  exact_match: float
  """Blanks that greedy decoding fills with just what stood there, given how many tokens that is."""
  exact_match_with_end: float
  """The same, where the model says itself where a blank ends."""
  blanks: int


def filling(model: LanguageModel, params: Params, batches: Iterable[Batch], end: int | None = None) -> Filling:
  """Of batches whose weights are 1 at what stood in a blank and, where labels are `end`, behind it.

  Greedy decoding finds a whole span just where each of its tokens is the likeliest behind those before it.
  """
  sums, lengths = np.zeros(6), []
  for batch in batches:
    found, counts = hosts.fetched(_sums(model, end, params, batch))
    sums += np.array(found, float)
    lengths += counts[counts > 0].tolist()
  if not lengths:
    raise UserError('no text has a blank')
  nats, with_ends, hits, exact, ended, tokens = sums.tolist()
  number = len(lengths)
  if end is not None:
    with_ends -= number * float(stats.entropy(np.bincount(lengths)))
  return Filling(nats / tokens, with_ends / tokens, hits / tokens, exact / number, ended / number, number)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sums(
  model: LanguageModel, end: int | None, params: Params, batch: Batch
) -> tuple[list[Float[Array, '']], Int[Array, 'B']]:
  """Nats, those of ends too, likeliest tokens, blanks filled, filled with their end, tokens; those of each text."""
  inputs, layout, targets, weights = next_token(batch)
  result: Any = model.apply(params, inputs, layout)
  logits = result[0]
  going_on = logits if end is None else logits.at[..., end].set(-jnp.inf)
  nats, likeliest = cross_entropy(logits, targets)[0], jnp.argmax(logits, axis=-1) == targets
  counted = weights > 0
  of_text = counted & (targets != (-1 if end is None else end))
  blank = jnp.any(counted, axis=1)
  filled = blank & jnp.all((jnp.argmax(going_on, axis=-1) == targets) | ~of_text, axis=1)
  with_end = blank & jnp.all(likeliest | ~counted, axis=1)
  some = [jnp.where(of, nats, 0) for of in (of_text, counted)]
  numbers = [*some, likeliest & of_text, filled, with_end, of_text]
  return [jnp.sum(number, dtype=jnp.float32) for number in numbers], jnp.sum(of_text, axis=1)


def choice_logprobs(
  model: LanguageModel,
  params: Params,
  questions: Sequence[Sequence[int]],
  options: Sequence[Sequence[Sequence[int]]],
  marks: Marks,
  *,
  running: bool = False,
  batch_size: int = 32,
) -> list[Float[np.ndarray, '_']]:
  """log p that the first blank of each question holds each of its options: GLM's verbalizer (equation 3).

  That is of all its tokens and of the end behind them. `running` is as in `decoding.infilling.opened`; so many options
  are read at a time.

  Raises:
    UserError: a question without a blank, or without options.
  """
  rows: list[Placed] = []
  sizes: list[int] = []
  for number, (question, its_options) in enumerate(zip(questions, options, strict=True)):
    place = next((place for place, token in enumerate(question) if token in marks.masks), None)
    if place is None:
      raise UserError(f'questions[{number}] has no blank: write [MASK] in it')
    if not its_options or not all(map(len, its_options)):
      raise UserError(f'options[{number}]: give at least one, none of them empty')
    asked = opened(question, place, marks, running=running)
    rows += [_answered(asked, option, marks.end) for option in its_options]
    sizes += [len(option) + 1 for option in its_options]
  tokens, layout, counts = padded(rows)
  at = np.arange(tokens.shape[1])
  said = (at >= (counts - sizes)[:, None]) & (at < counts[:, None])
  found = []
  for first in range(0, len(rows), batch_size):
    some = np.minimum(np.arange(first, first + batch_size), len(rows) - 1)  # the last again, so that shapes stay
    batch = jax.tree.map(lambda x, some=some: x[some], {'tokens': tokens, 'layout': layout, 'weights': said})
    found.append(_logprobs(model, params, {**batch, 'weights': batch['weights'].astype(np.float32)}))
  logprobs = np.concatenate(jax.device_get(found))[: len(rows)]
  each = (logprobs * said[:, 1:]).sum(axis=1)
  return np.split(each, np.cumsum([len(its_options) for its_options in options])[:-1])


_logprobs = functools.partial(jax.jit, static_argnums=0)(response_logprobs)


def _answered(asked: Placed, option: Sequence[int], end: int) -> Placed:
  """A question with an option in its blank, and the end behind it."""
  more = np.arange(1, len(option) + 2)
  inside = int(asked.block[-1]) > 0
  return dataclasses.replace(
    asked,
    tokens=np.append(asked.tokens, [*option, end]).astype(np.int32),
    position=np.append(asked.position, asked.position[-1] + more * (not inside)).astype(np.int32),
    block=np.append(asked.block, (asked.block[-1] + more) * inside).astype(np.int32),
    prefix=np.append(asked.prefix, np.zeros(len(more), bool)),
  )
