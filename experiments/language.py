"""From configs and finished runs to models, tokenizers and text."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import jax

from gpt_jax.data import assets, tokenizers
from gpt_jax.data.conventions import ChatTemplate, Message
from gpt_jax.data.rows import Rows, head, in_order, tokenize
from gpt_jax.data.sources import documents
from gpt_jax.data.tokenizers import Tokenizer
from gpt_jax.evaluation.perplexity import evaluate
from gpt_jax.interop.pretrained import pretrained
from gpt_jax.models.flops import training_flops
from gpt_jax.models.heads import LanguageModel, parameter_shapes
from gpt_jax.models.parts import from_config
from gpt_jax.models.quantization import quantize
from gpt_jax.models.transformer import TransformerConfig, unstack
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
  stride: int | None = None,
  begin: Sequence[int] = (),
) -> list[Rows]:
  """Rows of `config.context` tokens of each source of config.data; `num_tokens`: of its first ones alone, 0: of all."""
  data = config['data']
  streams = [tokenize(documents(name, split, data['held_out']), tokenizer) for name in sources_of(data)]
  if num_tokens:
    unpredicted = 0 if begin else 1
    streams = [head(stream, num_tokens + unpredicted, tokenizer) for stream in streams]
  size, apart = context or config['context'], data['separate_documents']
  return [Rows(stream, size, apart, drop_remainder, stride, begin) for stream in streams]


def weights_of(data: Mapping[str, Any]) -> list[float]:
  """The mixture's weights, alike where the config gives none."""
  return list(data['weights'] or (1.0,) * len(sources_of(data)))


@dataclasses.dataclass(frozen=True)
class Trained:
  """A model that can be used: what a run leaves, or weights from elsewhere."""

  model: LanguageModel
  params: Params
  tokenizer: Tokenizer
  context: int | None
  """The length in tokens that it was made for, where that is a limit."""
  config: Mapping[str, Any] | None
  """Of the run."""

  @property
  def begin(self) -> tuple[int, ...]:
    """What stood before every text in training: of a run nothing, whatever its vocabulary was made for."""
    return self.tokenizer.conventions.begin if self.config is None else ()

  def decode(self, ids: Sequence[int]) -> str:
    """The text of tokens."""
    return tokenizers.decode(self.tokenizer, ids)


MODEL = 'a run of this program, a folder of transformers, hf://OWNER/NAME, a .gguf file, or asset:NAME'
"""What --model takes."""


def is_run(folder: pathlib.Path) -> bool:
  """Whether a folder is a run's, and not one of transformers: the tokenizer has a folder of its own."""
  return (folder / 'config.json').exists() and (folder / 'tokenizer').is_dir()


def tokenizer_of(workdir: str) -> Tokenizer:
  """The tokenizer of a run.

  Raises:
    UserError: the folder is not a run's.
  """
  if not (pathlib.Path(workdir) / 'config.json').exists():
    raise UserError(f'{workdir} is not the folder of a run: it has no config.json')
  return tokenizers.load(pathlib.Path(workdir) / 'tokenizer')


def load(name: str, **changed: Any) -> Trained:
  """The model, parameters and tokenizer of a name, without dropout; see MODEL.

  Args:
    name: of a run, the last parameters.
    changed: fields of its TransformerConfig, such as dtype, quantization or stacked.

  Raises:
    UserError: there is no such model, it can't be read, or it is a run without a checkpoint.
  """
  folder = pathlib.Path(name)
  if not is_run(folder):
    found = pretrained(_file(name))
    if not found.files:
      raise UserError(f'{name} has no tokenizer beside its weights: add its tokenizer.json')
    model, params = found.load(**changed)
    return Trained(model, params, tokenizers.read(found.files, name), found.context, None)
  tokenizer, config = tokenizer_of(name), read_json(folder / 'config.json')['config']
  made = model_config(config, tokenizer).evaluated()
  params = restore_params(folder, parameter_shapes(LanguageModel(made)))
  model = LanguageModel(dataclasses.replace(made, **changed))
  if made.stacked and not model.config.stacked:
    params = unstack(params)
  if model.config.quantization is not None:
    params = quantize(params, model.config.quantization, parameter_shapes(model))
  return Trained(model, params, tokenizer, made.positions.length if made.positions is not None else None, config)


def _file(name: str) -> str:
  """The file of weights that an asset holds; any other name as it is."""
  kind, _, wanted = name.partition(':')
  if kind != 'asset':
    return name
  files = sorted(assets.asset(wanted).rglob('*.gguf'))
  if len(files) != 1:
    raise UserError(f'{name} is not an asset with the weights of a model')
  return str(files[0])


def prompt_ids(trained: Trained, text: str) -> list[int]:
  """The tokens of a prompt, names of special ones read as such, behind what stands before every text, once."""
  begin, ids = list(trained.begin), trained.tokenizer.encode_special(text).tolist()
  return ids if begin and ids[: len(begin)] == begin else begin + ids


def chat_template(trained: Trained) -> ChatTemplate:
  """How a conversation is written.

  Raises:
    UserError: the model has no template.
  """
  template = trained.tokenizer.conventions.chat
  if template is None:
    raise UserError('this model has no chat template, it was not taught to converse: use generate without --chat')
  return template


def chat_ids(trained: Trained, messages: Sequence[Message]) -> list[int]:
  """The tokens of a conversation up to where the model answers, as its chat template writes them.

  Raises:
    UserError: the model has no template, or it refuses these messages.
  """
  return trained.tokenizer.encode_special(chat_template(trained).render(messages)).tolist()


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
