"""Demonstrations as a config describes them: what is learned from, what of the model learns, and how it is chosen."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments import language, prompts, reading, rewards, runs
from gpt_jax.data.answers import Answers
from gpt_jax.data.formats import Demonstration, ask, demonstrations, teach
from gpt_jax.data.rows import Dataset
from gpt_jax.data.sources import records
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.lora import Lora
from gpt_jax.models.parts import part
from gpt_jax.names import choose
from gpt_jax.rollouts import Writing
from gpt_jax.types import Params, UserError

LORA_ALONE = (('lora_[ab]$', 1.0), ('', 0.0))
"""Rates of a model that stays as it is beside its LoRA."""

CHECKPOINTS: Mapping[str, tuple[str, bool]] = {
  'last': ('validation_loss', False),
  'best': ('validation_loss', False),
  'reward': ('held_out_reward', True),
}
"""By what a checkpoint is best, and whether the most of it is, for each value of config.checkpoint."""


def checked(config: Mapping[str, Any]) -> Lora | None:
  """What learns beside the model, where that stays as it is.

  Raises:
    UserError: what is wrong in the config, as far as it can be known before any data is read.
  """
  runs.check_epochs(config)
  if not 0 <= config['pretraining']['share'] < 1:
    raise UserError(f'config.pretraining.share = {config["pretraining"]["share"]} must be from 0 up to 1')
  if config['pretraining']['share']:
    reading.beside(config)
  for template in config['data']['templates']:
    if template.count('{}') != 1:
      raise UserError(f'config.data.templates: {template!r} must have {{}} once, where the prompt goes')
  choose('config.checkpoint', config['checkpoint'], CHECKPOINTS)
  if config['checkpoint'] == 'reward':
    for name in ('prompts', 'prompt_tokens', 'max_new_tokens'):
      if config['reward'][name] < 1:
        raise UserError(f'config.reward.{name} = {config["reward"][name]} must be at least 1')
    if not config['reward']['model']:
      raise UserError("config.checkpoint = 'reward' needs config.reward.model, a finished run of experiments.reward")
    if jax.process_count() > 1:
      raise UserError("config.checkpoint = 'reward': responses are written by one process; start one")
  return part('lora', config['lora'], 'config.lora') if config['lora'] else None


def training_rows(config: Mapping[str, Any], found: language.Weights) -> tuple[list[Dataset], list[float]]:
  """What is learned from, and shares of a batch: demonstrations and, where it is mixed in, text as in pretraining."""
  rows: list[Dataset] = [answers(config, found, 'train')]
  share = config['pretraining']['share']
  if not share:
    return rows, [1.0]
  text = reading.rows(reading.beside(config), found.tokenizer, 'train', drop_remainder=True)
  return [*rows, *text], [1 - share, *(share / len(text) for _ in text)]


def answers(config: Mapping[str, Any], found: language.Weights, split: str) -> Answers:
  """The demonstrations of a split of config.data as rows, and a line that says what there is."""
  texts = [teach(found.tokenizer, demonstration, found.begin) for demonstration in shown(config, split)]
  made = Answers(texts, config['context'], config['data']['packed'])
  print(
    f'{split}: {len(texts):,} demonstrations in {len(made):,} rows, {made.predicted:,} tokens to be predicted; '
    f'{made.cut:,} are cut, {made.dropped:,} dropped'
  )
  return made


def shown(config: Mapping[str, Any], split: str) -> list[Demonstration]:
  """The demonstrations of a split of config.data, as the model is shown them."""
  data, every = config['data'], []
  for name in reading.sources_of(data):
    every += demonstrations(records(name, split, data['held_out']))[: data['cap'] or None]
  return [_asked(demonstration, number, data) for number, demonstration in enumerate(every)]


def rewarded(config: Mapping[str, Any], found: language.Weights, model: LanguageModel) -> reading.Evaluation:
  """What a reward model says of answers to held-out prompts: by that InstructGPT chose among epochs (appendix C.1).

  Raises:
    UserError: no such reward model, or no prompt is short enough.
  """
  how = config['reward']
  asked = [
    [*ask(found.tokenizer, one.prompt, found.begin), *found.tokenizer.encode(one.answer).tolist()[: how['given']]]
    for one in shown(config, 'validation')
  ]
  asked = [ids for ids in asked if 0 < len(ids) <= how['prompt_tokens']]
  if not asked:
    raise UserError(f'no held-out prompt has 1 to {how["prompt_tokens"]} tokens: set config.reward.prompt_tokens')
  chosen = prompts.some(asked, how['prompts'])
  length = max(map(len, chosen)) + how['max_new_tokens']
  reward = rewards.of_model(how['model'], found.tokenizer, length, config['eval_batch_size'])
  writing = Writing(how['max_new_tokens'], Sampling(how['temperature']), stop_ids=prompts.ends(found.tokenizer))

  def evaluation(params: Params) -> dict[str, float]:
    return {'reward': float(np.mean(reward(writing(model, params, chosen, seed=config['seed'] + 1))))}

  return evaluation


def _asked(demonstration: Demonstration, number: int, data: Mapping[str, Any]) -> Demonstration:
  """The demonstration with its prompt in a template, of several each in turn, and as a turn of a conversation."""
  prompt = demonstration.prompt
  if not isinstance(prompt, str):
    return demonstration
  if data['templates']:
    prompt = data['templates'][number % len(data['templates'])].replace('{}', prompt)
  return Demonstration([{'role': 'user', 'content': prompt}] if data['chat'] else prompt, demonstration.answer)
