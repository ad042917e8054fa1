"""Talks with a model in the terminal; what was said stays read between turns.

python -m experiments.chat --model=asset:smollm2 [--system=TEXT] [--temperature=0.8] [--max_new_tokens=512]
"""

import json
import pathlib
import sys
from typing import Any

from absl import flags

from experiments import command, decoding_flags, language
from gpt_jax.data import tokenizers
from gpt_jax.data.conventions import Message
from gpt_jax.decoding.conversation import Conversation
from gpt_jax.types import UserError

SYSTEM = flags.DEFINE_string('system', None, 'what the model is told first')
HELP = '/reset begins anew, /save FILE writes what was said as JSON, /exit or Ctrl-D leaves, Ctrl-C cuts an answer off'


def main(_: Any) -> None:
  flags.set_default(decoding_flags.MAX_NEW_TOKENS, 512)
  trained, how = decoding_flags.load()
  language.chat_template(trained)
  talk = Talk(trained, how, SYSTEM.value)
  notice(HELP)
  while (line := asked()) is not None:
    name, _, argument = line.strip().partition(' ')
    try:
      if name == '/exit':
        return
      if name == '/reset':
        talk.reset()
        notice('(a new conversation)')
      elif name == '/save':
        notice(f'({talk.save(argument.strip())} turns in {argument.strip()})')
      elif name.startswith('/'):
        notice(HELP)
      elif name:
        talk.answer(line)
    except UserError as error:
      notice(f'({error})')


def asked() -> str | None:
  """A line from standard input; None at its end."""
  try:
    return input('> ' if sys.stdin.isatty() else '')
  except (EOFError, KeyboardInterrupt):
    return None


def notice(text: str) -> None:
  """What is not the model's goes to standard error."""
  print(text, file=sys.stderr, flush=True)


class Talk:
  """A conversation with a model, its answers shown as they come."""

  def __init__(self, trained: language.Trained, how: dict[str, Any], system: str | None):
    self.trained, self.how = trained, {name: value for name, value in how.items() if name != 'draft'}
    self.told: list[Message] = [] if system is None else [{'role': 'system', 'content': system}]
    self.conversation = Conversation(trained.model, trained.params, trained.context, how['draft'])
    self.reset()

  def reset(self) -> None:
    """Nothing was said yet."""
    self.messages: list[Message] = list(self.told)

  def save(self, path: str) -> int:
    """Writes the messages as JSON; how many there are."""
    if not path:
      raise UserError('/save needs the name of a file')
    try:
      pathlib.Path(path).expanduser().write_text(json.dumps(self.messages, indent=2, ensure_ascii=False) + '\n')
    except OSError as error:
      raise UserError(f'{path} can not be written: {error.strerror}') from None
    return len(self.messages)

  def answer(self, question: str) -> None:
    """Shows what the model says to a question, and adds both to the conversation.

    Raises:
      UserError: the context is full; the question is not added.
    """
    messages = [*self.messages, {'role': 'user', 'content': question}]
    ids = language.chat_ids(self.trained, messages)
    most, context = self.how['max_new_tokens'], self.conversation.context
    room = most if context is None else min(most, context - len(ids))
    if room < 1:
      raise UserError(f'the context of {context} tokens is full: /reset begins anew, /save FILE keeps what was said')
    seed = decoding_flags.SEED.value + len(self.messages)
    pieces = self.conversation.stream(ids, **{**self.how, 'max_new_tokens': room}, seed=seed, stride=4)
    ends = self.trained.tokenizer.conventions.ends
    finish, said = None, ''

    def written() -> Any:
      nonlocal finish
      for piece in pieces:
        finish = piece.finish
        yield from (int(token) for token in piece.tokens if token not in ends)

    try:
      for text in tokenizers.stream(self.trained.tokenizer, written()):
        said += text
        sys.stdout.write(text)
        sys.stdout.flush()
    except KeyboardInterrupt:
      finish = 'stop'
    sys.stdout.write('\n')
    sys.stdout.flush()
    if finish == 'length':
      full = room < most
      notice(f'(cut off: the context of {context} tokens is full; /reset)' if full else f'(cut off at {room} tokens)')
    self.messages = [*messages, {'role': 'assistant', 'content': said}]


if __name__ == '__main__':
  command.run(main)
