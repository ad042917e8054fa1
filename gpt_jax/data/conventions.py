"""What a model expects around text: tokens before it, tokens that end an answer, and the form of a conversation."""

from collections.abc import Mapping, Sequence
import dataclasses
import datetime
import functools
import json
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gpt_jax.types import UserError

Message = Mapping[str, Any]
"""One turn: {'role': 'system', 'user' or 'assistant', 'content': text}."""

Files = Mapping[str, bytes]
"""The files beside a vocabulary, by the names that transformers gives them."""

SETTINGS = ('tokenizer_config.json', 'special_tokens_map.json', 'generation_config.json', 'chat_template.jinja')

_ROLES = ('bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token')


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """A conversation as one text, by a Jinja template as transformers has them."""

  source: str
  special: Mapping[str, str] = dataclasses.field(default_factory=dict)
  """What the template may call bos_token, eos_token, ..."""

  def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any) -> str:
    """The text, with the special tokens written in it.

    The template runs in a sandbox: it can neither change anything nor reach out of what it is given.

    Args:
      messages: the turns, oldest first.
      add_generation_prompt: ends with what comes before an answer.
      variables: others that the template knows, such as tools or enable_thinking.

    Raises:
      UserError: the template is broken, or refuses these messages.
    """
    given = {'tools': None, 'documents': None, **self.special, **variables}
    try:
      return _compiled(self.source).render(messages=messages, add_generation_prompt=add_generation_prompt, **given)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
      said = ' '.join(str(error).split()) or type(error).__name__
      raise UserError(f'the chat template can not render these messages: {said}') from None


@functools.lru_cache
def _compiled(source: str) -> jinja2.Template:
  environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
  environment.filters['tojson'] = _to_json
  environment.globals['raise_exception'] = _refuse
  environment.globals['strftime_now'] = lambda form: datetime.datetime.now().strftime(form)
  return environment.from_string(source)


def _to_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
  """Jinja's own filter would escape for HTML."""
  return json.dumps(value, ensure_ascii=ensure_ascii, **how)


def _refuse(message: str) -> NoReturn:
  raise jinja2.TemplateError(message)


@dataclasses.dataclass(frozen=True)
class Conventions:
  """How a model was taught to use its vocabulary."""

  begin: tuple[int, ...] = ()
  """Stand before every text it reads: LLaMA's <s>."""
  ends: tuple[int, ...] = ()
  """Each of them ends an answer."""
  chat: ChatTemplate | None = None


def conventions(
  files: Files, numbers: Mapping[str, int], begin: Sequence[int] = (), end: int | None = None
) -> Conventions:
  """What the files beside a vocabulary say.

  Args:
    files: some of SETTINGS; others do not matter.
    numbers: of the tokens, by name.
    begin: what stands before a text where tokenizer_config.json says nothing of add_bos_token.
    end: of a document; ends an answer too.

  Raises:
    UserError: a file that is broken, or names a token that is not in the vocabulary.
  """
  settings = _object(files, 'special_tokens_map.json') | _object(files, 'tokenizer_config.json')
  generation = _object(files, 'generation_config.json')
  special = {role: _content(settings[role]) for role in _ROLES if settings.get(role)}
  for role, name in special.items():
    if name not in numbers and role in ('bos_token', 'eos_token'):
      raise UserError(f'tokenizer_config.json: {role} = {name!r} is not in the vocabulary')
  bos = [numbers[special['bos_token']]] if 'bos_token' in special else []
  ends = _numbers(generation.get('eos_token_id'), max(numbers.values(), default=-1))
  ends += [numbers[special['eos_token']]] if 'eos_token' in special else []
  ends += [] if end is None else [end]
  add = settings.get('add_bos_token')
  template = _template(files, settings)
  return Conventions(
    tuple(begin if add is None else bos if add else ()),
    tuple(dict.fromkeys(ends)),
    None if template is None else ChatTemplate(template, special),
  )


def _object(files: Files, name: str) -> dict[str, Any]:
  try:
    value = json.loads(files.get(name, b'{}'))
  except ValueError as error:
    raise UserError(f'{name}: not JSON ({error}); fetch it again') from None
  if not isinstance(value, dict):
    raise UserError(f'{name}: not a JSON object; fetch it again')
  return value


def _content(token: Any) -> str:
  """transformers writes a token as its name, or as an object that has it."""
  return str(token.get('content')) if isinstance(token, dict) else str(token)


def _numbers(value: Any, most: int) -> list[int]:
  """One number, several or none."""
  found = value if isinstance(value, list) else [] if value is None else [value]
  for number in found:
    if not isinstance(number, int) or not 0 <= number <= most:
      raise UserError(f'generation_config.json: eos_token_id = {number!r} is not in the vocabulary')
  return list(found)


def _template(files: Files, settings: Mapping[str, Any]) -> str | None:
  """A file of its own, or in tokenizer_config.json; of several by name, the default."""
  if 'chat_template.jinja' in files:
    return files['chat_template.jinja'].decode('utf-8', 'replace')
  found = settings.get('chat_template')
  if isinstance(found, list):
    found = {str(named.get('name')): named.get('template') for named in found}.get('default')
  return found if isinstance(found, str) else None
