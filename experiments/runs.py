"""What a run of a language model begins with: its config found right, its model and tokenizer, its folder."""

from collections.abc import Callable, Mapping
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from experiments import blanks, language, reading
from gpt_jax import hosts
from gpt_jax.data import tokenizers
from gpt_jax.data.marks import with_marks
from gpt_jax.data.tokenizers import Tokenizer
from gpt_jax.models.flops import training_flops
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.parts import from_config, kernels_of, to_config
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.objectives.likelihood import next_token_loss
from gpt_jax.training.checkpoints import latest_step
from gpt_jax.training.optimizers import make_optimizer
from gpt_jax.training.schedules import BatchRamp
from gpt_jax.training.workdir import prepare, read_json, write_json
from gpt_jax.types import LossFn, Params, UserError


def objective(config: Mapping[str, Any], model: TransformerConfig) -> tuple[Callable[[jax.Array], Params], LossFn]:
  """How a language model is born, of a key, and the loss that it learns by: in pretraining, and in a plan of it."""
  loss = dict(config['loss'])
  loss['chunk'] = loss['chunk'] or None
  born = LanguageModel(model.evaluated())
  return lambda key: born.init(key, jnp.zeros((1, 1), int)), next_token_loss(LanguageModel(model), **loss)


def beginning(
  config: Mapping[str, Any], workdir: str | None = None
) -> tuple[TransformerConfig, Tokenizer, language.Weights | None]:
  """The model of a run, its tokenizer, and the weights that it starts from, where it does not start anew.

  With config.init_from, tokenizer and model are those of the weights; what config.model sets, its family apart, is
  replaced in the model, as long as the weights fit. A run that has begun in `workdir` has its own, and asks no more of
  where it came from.

  Raises:
    UserError: no such weights, or they do not fit.
  """
  if not config['init_from']:
    tokenizer = tokenizers.tokenizer(
      config['data']['tokenizer'], reading.sources_of(config['data']), config['data']['held_out']
    )
    tokenizer = with_marks(tokenizer) if blanks.fills_blanks(config) else tokenizer
    return language.model_config(config, tokenizer), tokenizer, None
  folder = None if workdir is None or latest_step(workdir) is None else pathlib.Path(workdir)
  if folder is not None and (folder / language.MODEL_FILE).exists():
    return from_config(read_json(folder / language.MODEL_FILE)), tokenizers.load(folder / 'tokenizer'), None
  found = language.weights(config['init_from'])
  return found.changed(config['model']), found.tokenizer, found


def check(config: Mapping[str, Any], workdir: str | None = None) -> dict[str, Any]:
  """The config as a run keeps it, if nothing is wrong with it that can be known before any data is read.

  See `beginning`.

  Raises:
    UserError: it names the field.
  """
  reading.sources_of(config['data'])
  if config['init_from']:
    model, _, _ = beginning(config, workdir)
  else:
    model = from_config({**config['model'], 'vocab_size': config['model']['vocab_size'] or 1})
  check_context(model, max(config['context'], *config['measure']['contexts'], 1))
  blanks.of_config(config, model)
  make_optimizer(config['optimizer'], config['num_steps'])
  BatchRamp(config['batch_size'], config['context'], **config['batch_ramp'])
  return dict(config)


def check_epochs(config: Mapping[str, Any]) -> None:
  """Refuses what is wrong in the config of a run that goes on from a model, for so many epochs of its data.

  Raises:
    UserError: it names the field.
  """
  if not config['init_from']:
    raise UserError(f'config.init_from is missing: name {language.MODEL}')
  reading.sources_of(config['data'])
  for name in ('batch_size', 'context', 'eval_batch_size'):
    if config[name] < 1:
      raise UserError(f'config.{name} = {config[name]} must be at least 1')
  if config['epochs'] <= 0:
    raise UserError(f'config.epochs = {config["epochs"]} must be above 0')
  make_optimizer(config['optimizer'], 1)


def check_context(model: TransformerConfig, context: int, field: str = 'config.context') -> None:
  """A row must not be longer than the model has learned positions."""
  if model.positions is not None and model.positions.length < context:
    raise UserError(f'{field} = {context} exceeds the {model.positions.length} learned positions of the model')


def flops(config: Mapping[str, Any]) -> float:
  """The arithmetic of a whole run; makes the tokenizer, as that alone knows the vocabulary."""
  model, context = beginning(config)[0], config['context']
  ramp = BatchRamp(config['batch_size'], context, **config['batch_ramp'])
  return training_flops(model, context) * ramp.start(config['num_steps']) * context


def say_kernels(model: TransformerConfig, rows: int, length: int) -> None:
  """Prints how attention is computed."""
  print('Attention:', '; '.join(kernels_of(model, rows, length)))


def keep_tokenizer(workdir: str | os.PathLike, tokenizer: Tokenizer) -> None:
  """Writes a run's tokenizer into its folder. Of several processes one writes."""
  if hosts.leads():
    tokenizers.save(tokenizer, pathlib.Path(workdir) / 'tokenizer')


def claim(workdir: str, config: Mapping[str, Any], tokenizer: Tokenizer, model: TransformerConfig) -> pathlib.Path:
  """The folder of a run that goes on from a model: with its config, and what reads the model that it leaves."""
  folder = pathlib.Path(workdir)
  prepare(folder, config)
  keep_tokenizer(folder, tokenizer)
  write_json(folder / language.MODEL_FILE, to_config(model))
  return folder
