"""What people say of texts besides writing them: rankings of answers, from records of several forms."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from gpt_jax.data.conventions import Message
from gpt_jax.data.sources import Record
from gpt_jax.data.tokenizers import Tokenizer
from gpt_jax.types import UserError

Prompt = str | Sequence[Message]
"""A text to go on from, or a conversation to answer, which needs a vocabulary with a chat template."""


@dataclasses.dataclass(frozen=True)
class Ranking:
  """Responses to one prompt, and how good each is: equal scores are a tie."""

  prompt: Prompt
  responses: tuple[str, ...]
  scores: tuple[float, ...]

  def pairs(self) -> list['Ranking']:
    """Each two that are no tie, as a ranking of its own."""
    numbers = range(len(self.responses))
    untied = [(i, j) for i in numbers for j in numbers if self.scores[i] > self.scores[j]]
    take = lambda of, pair: tuple(of[i] for i in pair)
    return [Ranking(self.prompt, take(self.responses, pair), take(self.scores, pair)) for pair in untied]


def rankings(records: Iterable[Record], *, least: int = 4, most: int = 9, seed: int = 0) -> list[Ranking]:
  """The rankings of records of these forms.

  {"prompt", "chosen", "rejected"}, a pair, and {"prompt", "responses": [...], "scores": [...]}, a ranking: a prompt may
  be missing, or a list of messages. {"text", "rating"}: texts are shuffled by the seed and ranked `least` to `most` at
  a time, InstructGPT's 4 to 9 (Ouyang et al. 2022, section 3.5), each text once; what is left over is too few.

  Raises:
    UserError: a record of another form, which the line names, or none that ranks anything.
  """
  if not 2 <= least <= most:
    raise UserError(f'a ranking takes 2 texts or more: least = {least}, most = {most}')
  found, rated = [], []
  for place, record in records:
    if 'rating' in record:
      rated.append((_text(record, 'text', place), _number(record['rating'], f'{place}: "rating"')))
    elif 'chosen' in record:
      pair = tuple(_text(record, name, place) for name in ('chosen', 'rejected'))
      found.append(Ranking(_prompt(record, place), pair, (1.0, 0.0)))
    else:
      found.append(_whole(record, place))
  order = np.random.default_rng(seed).permutation(len(rated))
  sizes = np.random.default_rng([seed, 1]).integers(least, most + 1, len(rated))
  start = 0
  for size in sizes:
    group = [rated[i] for i in order[start : start + size]]
    start += int(size)
    if len(group) < least:
      break
    texts, scores = zip(*group, strict=True)
    found.append(Ranking('', texts, scores))
  found = [ranking for ranking in found if len(set(ranking.scores)) > 1]
  if not found:
    raise UserError('the source has no ranking: it needs two responses of different scores')
  return found


def _whole(record: Mapping[str, Any], place: str) -> Ranking:
  responses, scores = record.get('responses'), record.get('scores')
  if not isinstance(responses, list) or not isinstance(scores, list) or len(responses) != len(scores):
    raise UserError(
      f'{place}: expected "chosen" and "rejected", or as many "scores" as "responses", or "text" and "rating"'
    )
  texts = tuple(_text({'responses': text}, 'responses', place) for text in responses)
  return Ranking(_prompt(record, place), texts, tuple(_number(score, f'{place}: "scores"') for score in scores))


def _text(record: Mapping[str, Any], name: str, place: str) -> str:
  if not isinstance(text := record.get(name), str):
    raise UserError(f'{place}: "{name}" is missing, or no string')
  return text


def _number(value: Any, place: str) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
    raise UserError(f'{place} = {value!r} is no number')
  return float(value)


def _prompt(record: Mapping[str, Any], place: str) -> Prompt:
  prompt = record.get('prompt', '')
  if isinstance(prompt, str):
    return prompt
  well = isinstance(prompt, list) and all(
    isinstance(turn, Mapping) and all(isinstance(turn.get(field), str) for field in ('role', 'content'))
    for turn in prompt
  )
  if not well or not prompt:
    raise UserError(f'{place}: "prompt" must be a string, or a list of messages with "role" and "content"')
  return prompt


def encode(tokenizer: Tokenizer, ranking: Ranking, begin: Sequence[int] = ()) -> tuple[list[int], list[list[int]]]:
  """The tokens of the prompt, and of each response, which ends as the vocabulary ends one.

  They are tokenised apart, as when a response is written.

  Args:
    tokenizer: of the model.
    ranking: its prompt is a text, or messages for the chat template.
    begin: tokens that stand before every text.

  Raises:
    UserError: messages, and the vocabulary has no template.
  """
  conventions = tokenizer.conventions
  if isinstance(ranking.prompt, str):
    prompt, end = [*begin, *tokenizer.encode(ranking.prompt).tolist()], tokenizer.end_of_text
  else:
    if conventions.chat is None:
      raise UserError('the prompts are conversations, and the model has no chat template: give texts')
    prompt = tokenizer.encode_special(conventions.chat.render(ranking.prompt)).tolist()
    end = conventions.ends[0] if conventions.ends else None
  ending = [] if end is None else [end]
  return prompt, [[*ids.tolist(), *ending] for ids in tokenizer.encode_batch(ranking.responses)]
