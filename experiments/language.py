"""From configs and finished runs to models, tokenizers and text."""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
from typing import Any

import jax

from gpt_jax.data import tokenizers
from gpt_jax.data.rows import Rows, head, in_order, tokenize
from gpt_jax.data.sources import documents
from gpt_jax.data.tokenizers import Tokenizer
from gpt_jax.evaluation.perplexity import evaluate
from gpt_jax.models.flops import training_flops
from gpt_jax.models.heads import LanguageModel, parameter_shapes
from gpt_jax.models.parts import from_config
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.objectives.likelihood import next_token_loss
from gpt_jax.training.checkpoints import restore_params
from gpt_jax.training.optimizers import make_optimizer
from gpt_jax.training.schedules import BatchRamp
from gpt_jax.training.workdir import read_json
from gpt_jax.types import Batch, Params, UserError


def sources_of(data: Mapping[str, Any]) -> list[str]:
  """The names of config.data.source."""
  names = [name.strip() for name in data['source'].split(',') if name.strip()]
  if not names:
    raise UserError('config.data.source is empty; give asset:NAME, file:PATH, tfds:NAME or hf:NAME')
  return names


def model_config(config: Mapping[str, Any], tokenizer: Tokenizer) -> TransformerConfig:
  """The model of a run, with the tokenizer's vocabulary unless the config names a larger one."""
  model = dict(config['model'])
  model['vocab_size'] = model['vocab_size'] or tokenizer.vocab_size
  size, needed = model['vocab_size'], tokenizer.vocab_size
  if size < needed:
    raise UserError(f'config.model.vocab_size = {size} is less than the {needed} of the tokenizer; leave it out')
  return from_config(model)


def check(config: Mapping[str, Any]) -> None:
  """Refuses what is wrong in the config of a run, as far as it can be known before any data is read.

  Raises:
    UserError: it names the field.
  """
  sources_of(config['data'])
  model = from_config({**config['model'], 'vocab_size': config['model']['vocab_size'] or 1})
  check_context(model, max(config['context'], *config['measure']['contexts'], 1))
  make_optimizer(config['optimizer'], config['num_steps'])
  BatchRamp(config['batch_size'], config['context'], **config['batch_ramp'])


def flops(config: Mapping[str, Any]) -> float:
  """The arithmetic of a whole run; makes the tokenizer, as that alone knows the vocabulary."""
  data, context = config['data'], config['context']
  tokenizer = tokenizers.tokenizer(data['tokenizer'], sources_of(data), data['held_out'])
  ramp = BatchRamp(config['batch_size'], context, **config['batch_ramp'])
  return training_flops(model_config(config, tokenizer), context) * ramp.start(config['num_steps']) * context


def check_context(model: TransformerConfig, context: int) -> None:
  """A row must not be longer than the model has learned positions."""
  if model.positions is not None and model.positions.length < context:
    raise UserError(f'config.context = {context} exceeds the {model.positions.length} learned positions of the model')


def rows(
  config: Mapping[str, Any],
  tokenizer: Tokenizer,
  split: str,
  *,
  drop_remainder: bool,
  num_tokens: int = 0,
  context: int | None = None,
) -> list[Rows]:
  """Rows of `config.context` tokens of each source of config.data; `num_tokens`: of its first ones alone, 0: of all."""
  data = config['data']
  streams = [tokenize(documents(name, split, data['held_out']), tokenizer) for name in sources_of(data)]
  if num_tokens:
    streams = [head(stream, num_tokens + 1, tokenizer) for stream in streams]
  return [Rows(stream, context or config['context'], data['separate_documents'], drop_remainder) for stream in streams]


def weights_of(data: Mapping[str, Any]) -> list[float]:
  """The mixture's weights, alike where the config gives none."""
  return list(data['weights'] or (1.0,) * len(sources_of(data)))


@dataclasses.dataclass(frozen=True)
class Trained:
  """A model that can be used: what a finished or stopped run leaves."""

  model: LanguageModel
  params: Params
  tokenizer: Tokenizer
  config: Mapping[str, Any]


def tokenizer_of(workdir: str) -> Tokenizer:
  """The tokenizer of a run.

  Raises:
    UserError: the folder is not a run's.
  """
  if not (pathlib.Path(workdir) / 'config.json').exists():
    raise UserError(f'{workdir} is not the folder of a run: it has no config.json')
  return tokenizers.load(pathlib.Path(workdir) / 'tokenizer')


def load(workdir: str) -> Trained:
  """The model, last parameters, tokenizer and config of a run's folder.

  Raises:
    UserError: the folder is not a run's, or has no checkpoint yet.
  """
  folder = pathlib.Path(workdir)
  tokenizer = tokenizer_of(workdir)
  config = read_json(folder / 'config.json')['config']
  model = LanguageModel(model_config(config, tokenizer).evaluated())
  return Trained(model, restore_params(folder, parameter_shapes(model)), tokenizer, config)


Evaluation = Callable[[Params], dict[str, float]]


def validation(
  model: LanguageModel,
  held_out: list[Rows],
  batch_size: int,
  place: Callable[[Batch], Batch] = lambda batch: batch,
) -> Evaluation:
  """Loss in nats a token, perplexity and bits per byte of all held-out text; `place` puts a batch on the mesh.

  Bytes are all of the text's, also of the first token of a text, or of a document apart, which nothing predicts.
  """
  loss_fn = next_token_loss(model)
  num_bytes = sum(rows.stream.num_bytes for rows in held_out)

  def evaluation(params: Params) -> dict[str, float]:
    hosts = {'host': jax.process_index(), 'hosts': jax.process_count()}
    batches = (place(batch) for rows in held_out for batch in in_order(rows, batch_size, **hosts))
    return evaluate(loss_fn, params, batches, num_bytes=num_bytes)

  return evaluation
