"""Demonstrations as a config describes them: what is learned from, and what of the model learns."""

from collections.abc import Mapping
from typing import Any

from experiments import language
from gpt_jax.data.answers import Answers
from gpt_jax.data.formats import Demonstration, demonstrations, teach
from gpt_jax.data.rows import Dataset
from gpt_jax.data.sources import records
from gpt_jax.models.lora import Lora
from gpt_jax.models.parts import part
from gpt_jax.names import choose
from gpt_jax.types import UserError

LORA_ALONE = (('lora_[ab]$', 1.0), ('', 0.0))
"""Rates of a model that stays as it is beside its LoRA."""


def checked(config: Mapping[str, Any]) -> Lora | None:
  """What learns beside the model, where that stays as it is.

  Raises:
    UserError: what is wrong in the config, as far as it can be known before any data is read.
  """
  language.check_epochs(config)
  if not 0 <= config['pretraining']['share'] < 1:
    raise UserError(f'config.pretraining.share = {config["pretraining"]["share"]} must be from 0 up to 1')
  if config['pretraining']['share']:
    language.beside(config)
  for template in config['data']['templates']:
    if template.count('{}') != 1:
      raise UserError(f'config.data.templates: {template!r} must have {{}} once, where the prompt goes')
  choose('config.checkpoint', config['checkpoint'], dict.fromkeys(('last', 'best')))
  return part('lora', config['lora'], 'config.lora') if config['lora'] else None


def training_rows(config: Mapping[str, Any], found: language.Weights) -> tuple[list[Dataset], list[float]]:
  """What is learned from, and shares of a batch: demonstrations and, where it is mixed in, text as in pretraining."""
  rows: list[Dataset] = [answers(config, found, 'train')]
  share = config['pretraining']['share']
  if not share:
    return rows, [1.0]
  text = language.rows(language.beside(config), found.tokenizer, 'train', drop_remainder=True)
  return [*rows, *text], [1 - share, *(share / len(text) for _ in text)]


def answers(config: Mapping[str, Any], found: language.Weights, split: str) -> Answers:
  """The demonstrations of a split of config.data as rows, and a line that says what there is."""
  data = config['data']
  shown = []
  for name in language.sources_of(data):
    of_source = demonstrations(records(name, split, data['held_out']))
    shown += of_source[: data['cap'] or None]
  texts = [
    teach(found.tokenizer, _asked(demonstration, number, data), found.begin)
    for number, demonstration in enumerate(shown)
  ]
  made = Answers(texts, config['context'], data['packed'])
  print(
    f'{split}: {len(texts):,} demonstrations in {len(made):,} rows, {made.predicted:,} tokens to be predicted; '
    f'{made.cut:,} are cut, {made.dropped:,} dropped'
  )
  return made


def _asked(demonstration: Demonstration, number: int, data: Mapping[str, Any]) -> Demonstration:
  """The demonstration with its prompt in a template, of several each in turn, and as a turn of a conversation."""
  prompt = demonstration.prompt
  if not isinstance(prompt, str):
    return demonstration
  if data['templates']:
    prompt = data['templates'][number % len(data['templates'])].replace('{}', prompt)
  return Demonstration([{'role': 'user', 'content': prompt}] if data['chat'] else prompt, demonstration.answer)
