"""From configs and finished runs to models, tokenizers and text."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import jax

from gpt_jax.data import assets, tokenizers
from gpt_jax.data.blanks import KINDS
from gpt_jax.data.conventions import ChatTemplate, Message
from gpt_jax.data.infilling import LeftToRight
from gpt_jax.data.marks import Marks, marks_of, with_marks
from gpt_jax.data.rows import Dataset, Rows, head, in_order, tokenize
from gpt_jax.data.sources import documents
from gpt_jax.data.tokenizers import Tokenizer
from gpt_jax.evaluation.perplexity import evaluate
from gpt_jax.interop.pretrained import pretrained
from gpt_jax.interop.tensors import Place, Pretrained
from gpt_jax.models.flops import training_flops
from gpt_jax.models.heads import LanguageModel, parameter_shapes
from gpt_jax.models.lora import Lora, merged
from gpt_jax.models.parts import from_config, kernels_of, to_config
from gpt_jax.models.quantization import quantize
from gpt_jax.models.transformer import TransformerConfig, unstack
from gpt_jax.objectives.likelihood import next_token_loss
from gpt_jax.training.checkpoints import latest_step, restore_params
from gpt_jax.training.optimizers import make_optimizer
from gpt_jax.training.schedules import BatchRamp
from gpt_jax.training.workdir import prepare, read_json, write_json
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


def fills_blanks(config: Mapping[str, Any]) -> bool:
  """Whether a run learns to fill blanks, and not to write from left to right."""
  return any(config.get('infilling', {}).get(kind) for kind in KINDS)


def beginning(
  config: Mapping[str, Any], workdir: str | None = None
) -> tuple[TransformerConfig, Tokenizer, 'Weights | None']:
  """The model of a run, its tokenizer, and the weights that it starts from, where it does not start anew.

  With config.init_from, tokenizer and model are those of the weights; what config.model sets, its family apart, is
  replaced in the model, as long as the weights fit. A run that has begun in `workdir` has its own, and asks no more of
  where it came from.

  Raises:
    UserError: no such weights, or they do not fit.
  """
  if not config['init_from']:
    tokenizer = tokenizers.tokenizer(
      config['data']['tokenizer'], sources_of(config['data']), config['data']['held_out']
    )
    tokenizer = with_marks(tokenizer) if fills_blanks(config) else tokenizer
    return model_config(config, tokenizer), tokenizer, None
  if workdir is not None and latest_step(workdir) is not None and (pathlib.Path(workdir) / MODEL_FILE).exists():
    folder = pathlib.Path(workdir)
    return from_config(read_json(folder / MODEL_FILE)), tokenizers.load(folder / 'tokenizer'), None
  found = weights(config['init_from'])
  return found.changed(config['model']), found.tokenizer, found


def check(config: Mapping[str, Any], workdir: str | None = None) -> dict[str, Any]:
  """The config as a run keeps it, if nothing is wrong with it that can be known before any data is read.

  See `beginning`.

  Raises:
    UserError: it names the field.
  """
  sources_of(config['data'])
  if config['init_from']:
    model, _, _ = beginning(config, workdir)
  else:
    model = from_config({**config['model'], 'vocab_size': config['model']['vocab_size'] or 1})
  check_context(model, max(config['context'], *config['measure']['contexts'], 1))
  make_optimizer(config['optimizer'], config['num_steps'])
  BatchRamp(config['batch_size'], config['context'], **config['batch_ramp'])
  return dict(config)


def check_epochs(config: Mapping[str, Any]) -> None:
  """Refuses what is wrong in the config of a run that goes on from a model, for so many epochs of its data.

  Raises:
    UserError: it names the field.
  """
  if not config['init_from']:
    raise UserError(f'config.init_from is missing: name {MODEL}')
  sources_of(config['data'])
  for name in ('batch_size', 'context', 'eval_batch_size'):
    if config[name] < 1:
      raise UserError(f'config.{name} = {config[name]} must be at least 1')
  if config['epochs'] <= 0:
    raise UserError(f'config.epochs = {config["epochs"]} must be above 0')
  make_optimizer(config['optimizer'], 1)


def flops(config: Mapping[str, Any]) -> float:
  """The arithmetic of a whole run; makes the tokenizer, as that alone knows the vocabulary."""
  model, context = beginning(config)[0], config['context']
  ramp = BatchRamp(config['batch_size'], context, **config['batch_ramp'])
  return training_flops(model, context) * ramp.start(config['num_steps']) * context


def check_context(model: TransformerConfig, context: int, field: str = 'config.context') -> None:
  """A row must not be longer than the model has learned positions."""
  if model.positions is not None and model.positions.length < context:
    raise UserError(f'{field} = {context} exceeds the {model.positions.length} learned positions of the model')


def say_kernels(model: TransformerConfig, rows: int, length: int) -> None:
  """Prints how attention is computed."""
  print('Attention:', '; '.join(kernels_of(model, rows, length)))


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


def beside(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config of the text that is learned from besides, as in pretraining: config.pretraining in place of config.data.

  Raises:
    UserError: it names no source.
  """
  if not config['pretraining']['source']:
    raise UserError('config.pretraining.source is missing: name the text that is learned from besides')
  return {**config, 'data': {**config['pretraining'], 'weights': None, 'separate_documents': True}}


def weights_of(data: Mapping[str, Any]) -> list[float]:
  """The mixture's weights, alike where the config gives none."""
  return list(data['weights'] or (1.0,) * len(sources_of(data)))


def claim(workdir: str, config: Mapping[str, Any], tokenizer: Tokenizer, model: TransformerConfig) -> pathlib.Path:
  """The folder of a run that goes on from a model: with its config, and what reads the model that it leaves."""
  folder = pathlib.Path(workdir)
  prepare(folder, config)
  tokenizers.save(tokenizer, folder / 'tokenizer')
  write_json(folder / MODEL_FILE, to_config(model))
  return folder


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
    """What stood before every text in training."""
    return _begin(self.tokenizer, self.config)

  @property
  def marks(self) -> Marks | None:
    """What blanks are written with, of a model that fills them: it reads both ways, and its vocabulary has marks."""
    reads_both_ways = any(pattern.mask.looks_ahead for pattern in self.model.config.attention)
    return marks_of(self.tokenizer) if reads_both_ways else None

  def decode(self, ids: Sequence[int]) -> str:
    """The text of tokens."""
    return tokenizers.decode(self.tokenizer, ids)


def _begin(tokenizer: Tokenizer, run: Mapping[str, Any] | None) -> tuple[int, ...]:
  """What stood before every text in training: of a run what its config says, whatever its vocabulary was made for."""
  return tokenizer.conventions.begin if run is None else tuple(run.get('begin', ()))


MODEL = 'a run of this program, a folder of transformers, hf://OWNER/NAME, a .gguf file, or asset:NAME'
"""What --model takes."""

MODEL_FILE = 'model.json'
"""In the folder of a run whose model its config does not say, because it came with weights from elsewhere."""


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


@dataclasses.dataclass(frozen=True)
class Weights:
  """A model by its name, of which all is known but the parameters, which are not read yet."""

  name: str
  config: TransformerConfig
  """As it was trained, with its dropout, LoRA merged into its kernels."""
  tokenizer: Tokenizer
  context: int | None
  run: Mapping[str, Any] | None
  """The config of the run that left it, or that it comes from."""
  files: Pretrained | None
  """Those of another library."""
  lora: Lora | None = None
  """What the run has beside the kernels."""
  step: int | None = None
  """Of the checkpoint that is read; None: the last."""

  @property
  def begin(self) -> tuple[int, ...]:
    """What stood before every text in training."""
    return _begin(self.tokenizer, self.run)

  def changed(self, fields: Mapping[str, Any]) -> TransformerConfig:
    """The model with fields of config.model replaced, where they are not None; its family is not asked.

    Raises:
      UserError: the parameters of such a model would have other shapes.
    """
    made = from_config(fields, self.config)
    ours, theirs = (
      parameter_shapes(LanguageModel(dataclasses.replace(config, stacked=True))) for config in (made, self.config)
    )
    if ours != theirs:
      named = [name for name, value in fields.items() if value is not None and name != 'family']
      wrong = next((name for name in named if getattr(made, name) != getattr(self.config, name)), 'family')
      raise UserError(
        f'config.model.{wrong} = {fields[wrong]!r} does not fit the weights of {self.name}: leave it out, or init_from'
      )
    return made

  def read(self, config: TransformerConfig, place: Place | None = None) -> Params:
    """The parameters, as a model of this config has them; `place` gives the sharding of each, of their shapes.

    Raises:
      UserError: they can not be read, or there is no checkpoint in the run.
    """
    if self.files is not None:
      fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
      return self.files.load(place=place, **fields)[1]
    kept = dataclasses.replace(config, stacked=self.config.stacked, quantization=None, lora=self.lora)
    like = parameter_shapes(LanguageModel(kept))
    if place is not None:
      shaped = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
      like = jax.tree.map(shaped, like, place(like))
    params = restore_params(self.name, like, self.step)
    params = params if self.lora is None else merged(params, self.lora)
    params = unstack(params) if self.config.stacked and not config.stacked else params
    if config.quantization is None:
      return params
    return quantize(params, config.quantization, parameter_shapes(LanguageModel(config)))


def weights(name: str) -> Weights:
  """The model of a name; see MODEL.

  Raises:
    UserError: there is no such model, or it is one that can't be read.
  """
  folder = pathlib.Path(name)
  if not is_run(folder):
    found = pretrained(_file(name))
    if not found.files:
      raise UserError(f'{name} has no tokenizer beside its weights: add its tokenizer.json')
    return Weights(name, found.config, tokenizers.read(found.files, name), found.context, None, found)
  tokenizer, config = tokenizer_of(name), read_json(folder / 'config.json')['config']
  written = folder / MODEL_FILE
  if not written.exists() and 'family' not in config.get('model', {}):
    other = f'give it as --medusa, and {config["base"]} as --model' if 'base' in config else 'it is no language model'
    raise UserError(f'{name} is a run that left heads alone: {other}')
  made = from_config(read_json(written)) if written.exists() else model_config(config, tokenizer)
  context = made.positions.length if made.positions is not None else None
  # What learned along with its heads is read and begins as the model that it comes from.
  run = weights(config['base']).run if 'base' in config else config
  finished = config.get('checkpoint', 'last') != 'last' and (folder / 'result.json').exists()
  step = read_json(folder / 'result.json')['best_step'] if finished else None
  if step == 0:
    raise UserError(f'{name}: it was best before training: lower config.optimizer.learning_rate')
  return Weights(name, dataclasses.replace(made, lora=None), tokenizer, context, run, None, made.lora, step)


def load(name: str, place: Place | None = None, **changed: Any) -> Trained:
  """The model, parameters and tokenizer of a name, without dropout; see MODEL.

  Args:
    name: of a run, the last parameters.
    place: gives the sharding of each parameter, of their shapes; None: the default device.
    changed: fields of its TransformerConfig, such as dtype, quantization or stacked.

  Raises:
    UserError: there is no such model, it can't be read, or it is a run without a checkpoint.
  """
  found = weights(name)
  config = dataclasses.replace(found.config.evaluated(), **changed)
  return Trained(LanguageModel(config), found.read(config, place), found.tokenizer, found.context, found.run)


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
  held_out: Sequence[Rows] | Sequence[LeftToRight],
  batch_size: int,
  place: Callable[[Batch], Batch] = lambda batch: batch,
) -> Evaluation:
  """Loss in nats a token, perplexity and bits per byte of all held-out text; `place` puts a batch on the mesh.

  Bytes are all of the text's, also of the first token of a text, or of a document apart, which nothing predicts.
  """
  return measured(model, held_out, batch_size, place, sum(rows.stream.num_bytes for rows in held_out))


def measured(
  model: LanguageModel,
  held_out: Sequence[Dataset],
  batch_size: int,
  place: Callable[[Batch], Batch] = lambda batch: batch,
  num_bytes: int | None = None,
) -> Evaluation:
  """Loss in nats a token and perplexity of rows, and bits per byte where there are so many."""
  loss_fn = next_token_loss(model)

  def evaluation(params: Params) -> dict[str, float]:
    hosts = {'host': jax.process_index(), 'hosts': jax.process_count()}
    batches = (place(batch) for rows in held_out for batch in in_order(rows, batch_size, **hosts))
    return evaluate(loss_fn, params, batches, num_bytes=num_bytes)

  return evaluation
