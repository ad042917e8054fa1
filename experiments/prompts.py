"""Prompts that a policy writes on from, and what ends what it writes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from experiments import language, reading
from gpt_jax.data.formats import ask, prompts
from gpt_jax.data.sources import records
from gpt_jax.data.tokenizers import Tokenizer
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.rollouts import Writing
from gpt_jax.types import UserError

Asked = tuple[list[int], Mapping[str, Any]]
"""The tokens of a prompt, and the record that it comes from."""

T = TypeVar('T')


def of_split(data: Mapping[str, Any], found: language.Weights, split: str) -> list[Asked]:
  """The prompts of a split of config.data; those that are too long are left out, and a line says how many."""
  kept, left_out, limit = [], 0, data['prompt_tokens']
  for name in reading.sources_of(data):
    of_source = records(name, split, data['held_out'])
    for prompt, (_, record) in zip(prompts(of_source), of_source, strict=True):
      ids = ask(found.tokenizer, prompt, found.begin)
      ids = ids[:limit] if data['beginnings'] else ids
      if 0 < len(ids) <= limit:
        kept.append((ids, record))
      else:
        left_out += 1
  print(f'{split}: {len(kept):,} prompts; {left_out:,} are empty or longer than {limit} tokens, and left out')
  if not kept:
    raise UserError(f'the source has no prompt of at most {limit} tokens for {split}')
  return kept


def in_turn(asked: Sequence[Asked], number: int, seed: int) -> Callable[[int], list[list[int]]]:
  """The prompts of each rollout, `number` a time: every prompt once, then once more in another order, and so on."""
  count = len(asked)

  def of_rollout(rollout: int) -> list[list[int]]:
    places = range(rollout * number, (rollout + 1) * number)
    orders = {turn: np.random.default_rng([seed, turn]).permutation(count) for turn in {p // count for p in places}}
    return [asked[orders[place // count][place % count]][0] for place in places]

  return of_rollout


def some(asked: Sequence[T], number: int) -> list[T]:
  """About so many prompts, from all over; all, if there are fewer."""
  return list(asked[:: max(len(asked) // number, 1)][:number])


def writing(rollout: Mapping[str, Any], tokenizer: Tokenizer) -> Writing:
  """How responses are written, of config.rollout.

  Raises:
    UserError: where they are to be truncated is no token.
  """
  return Writing(
    rollout['max_new_tokens'],
    Sampling(rollout['temperature']),
    stop_ids=ends(tokenizer) if rollout['ends'] else (),
    truncate_ids=saying(tokenizer, rollout['truncate_at']),
    truncate_after=rollout['truncate_after'],
    num_samples=rollout['num_samples'],
  )


def ends(tokenizer: Tokenizer) -> tuple[int, ...]:
  """The tokens that end a response."""
  found = (*tokenizer.conventions.ends, tokenizer.end_of_text)
  return tuple(dict.fromkeys(token for token in found if token is not None))


def saying(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
  """The tokens that say a text by themselves, white space around it left aside; none for no text.

  Raises:
    UserError: there is none.
  """
  if not text:
    return ()
  words = (tokenizer.decode_bytes([token]).strip() for token in range(tokenizer.vocab_size))
  found = tuple(token for token, word in enumerate(words) if word == text.encode())
  if not found:
    raise UserError(f'config.rollout.truncate_at = {text!r} is no token of the vocabulary')
  return found
