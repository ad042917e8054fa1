"""Answers to prompts, and rankings of answers, from records of several forms."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from gpt_jax.data.answers import Taught, answered
from gpt_jax.data.conventions import ChatTemplate, Message
from gpt_jax.data.sources import Record
from gpt_jax.data.tokenizers import Tokenizer
from gpt_jax.types import UserError

Prompt = str | Sequence[Message]
"""A text to go on from, or a conversation to answer, which needs a vocabulary with a chat template."""


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """How a prompt is to be answered."""

  prompt: Prompt
  """Of a conversation all turns before the last answer; those of the assistant are to be learned as well."""
  answer: str


def demonstrations(records: Iterable[Record]) -> list[Demonstration]:
  """The demonstrations of records of these forms.

  {"messages"}, a conversation, up to the last turn of the assistant; {"prompt", "answer"} (or "completion"), where the
  prompt may be a list of messages too; {"instruction", "input", "output"}, of which the input may be missing or empty
  and otherwise follows the instruction after an empty line; {"text"}, all of which is an answer to nothing.

  Raises:
    UserError: a record of another form, which the line names.
  """
  found = []
  for place, record in records:
    if 'messages' in record:
      turns = list(_messages(record['messages'], f'{place}: "messages" must be'))
      while turns and turns[-1]['role'] != 'assistant':
        turns.pop()
      if not turns:
        raise UserError(f'{place}: "messages" has no turn of the assistant to learn')
      found.append(Demonstration(turns[:-1], turns[-1]['content']))
    elif 'instruction' in record:
      parts = [_text(record, name, place) for name in ('instruction', 'input') if record.get(name) or name != 'input']
      found.append(Demonstration('\n\n'.join(parts), _text(record, 'output', place)))
    elif 'prompt' in record:
      name = 'completion' if 'completion' in record else 'answer'
      found.append(Demonstration(_prompt(record, place), _text(record, name, place)))
    else:
      found.append(Demonstration('', _text(record, 'text', place)))
  return found


def prompts(records: Iterable[Record]) -> list[Prompt]:
  """What records ask: "prompt", the turns of "messages" before the assistant's last, or a "text" to go on from.

  Raises:
    UserError: a record of another form, which the line names.
  """
  found: list[Prompt] = []
  for place, record in records:
    if 'prompt' in record:
      found.append(_prompt(record, place))
    elif 'messages' in record:
      found += [demonstration.prompt for demonstration in demonstrations([(place, record)])]
    else:
      found.append(_text(record, 'text', place))
  return found


def ask(tokenizer: Tokenizer, prompt: Prompt, begin: Sequence[int] = ()) -> list[int]:
  """The tokens of a prompt, up to where an answer begins; `begin` stands before a text.

  Raises:
    UserError: messages, and the vocabulary has no template.
  """
  if isinstance(prompt, str):
    return [*begin, *tokenizer.encode(prompt).tolist()]
  return tokenizer.encode_special(_template(tokenizer).render(prompt)).tolist()


def teach(tokenizer: Tokenizer, demonstration: Demonstration, begin: Sequence[int] = ()) -> Taught:
  """The tokens of a demonstration, of which those of answers are to be predicted, with what ends them.

  An answer is tokenised apart from what stands before it, as when it is written. In a conversation every turn of the
  assistant is an answer; what the template writes around it, but for its end, is not.

  Args:
    tokenizer: of the model.
    demonstration: its prompt is a text, or messages for the chat template.
    begin: tokens that stand before every text.

  Raises:
    UserError: messages, and the vocabulary has no template, or one that rewrites earlier turns.
  """
  if isinstance(demonstration.prompt, str):
    ending = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    prompt = ask(tokenizer, demonstration.prompt, begin)
    return answered(prompt, [*tokenizer.encode(demonstration.answer).tolist(), *ending])
  chat, ends = _template(tokenizer), tokenizer.conventions.ends
  messages = [*demonstration.prompt, {'role': 'assistant', 'content': demonstration.answer}]
  tokens: list[int] = []
  taught: list[bool] = []
  written = ''
  for number, message in enumerate(messages):
    if message['role'] != 'assistant':
      continue
    before = chat.render(messages[:number])
    after = chat.render(messages[: number + 1], add_generation_prompt=False)
    if not before.startswith(written) or not after.startswith(before):
      raise UserError(
        'the chat template changes what it wrote of earlier turns: an answer has no place of its own in it'
      )
    read = tokenizer.encode_special(before[len(written) :]).tolist()
    said = tokenizer.encode_special(after[len(before) :]).tolist()
    end = next((place + 1 for place in reversed(range(len(said))) if said[place] in ends), len(said))
    tokens += [*read, *said]
    taught += [False] * len(read) + [True] * end + [False] * (len(said) - end)
    written = after
  return tokens, taught


def _template(tokenizer: Tokenizer) -> ChatTemplate:
  if tokenizer.conventions.chat is None:
    raise UserError('the prompts are conversations, and the model has no chat template: give texts')
  return tokenizer.conventions.chat


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
  return prompt if isinstance(prompt, str) else _messages(prompt, f'{place}: "prompt" must be a string, or')


def _messages(found: Any, said: str) -> list[Message]:
  well = isinstance(found, list) and all(
    isinstance(turn, Mapping) and all(isinstance(turn.get(field), str) for field in ('role', 'content'))
    for turn in found
  )
  if not well or not found:
    raise UserError(f'{said} a list of messages with "role" and "content"')
  return found


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
  is_text = isinstance(ranking.prompt, str)
  end = tokenizer.end_of_text if is_text else next(iter(tokenizer.conventions.ends), None)
  prompt = ask(tokenizer, ranking.prompt, begin)
  ending = [] if end is None else [end]
  return prompt, [[*ids.tolist(), *ending] for ids in tokenizer.encode_batch(ranking.responses)]
