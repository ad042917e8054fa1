"""Models by name: what runs leave and what comes from elsewhere, with their tokenizers and how they are spoken to."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

from gpt_jax.data import assets, tokenizers
from gpt_jax.data.conventions import ChatTemplate, Message
from gpt_jax.data.marks import Marks, marks_of
from gpt_jax.data.tokenizers import Tokenizer
from gpt_jax.interop.pretrained import pretrained
from gpt_jax.interop.tensors import Place, Pretrained
from gpt_jax.models.heads import LanguageModel, parameter_shapes
from gpt_jax.models.lora import Lora, merged
from gpt_jax.models.parts import from_config
from gpt_jax.models.quantization import quantize
from gpt_jax.models.transformer import TransformerConfig, unstack
from gpt_jax.training.checkpoints import restore_params
from gpt_jax.training.workdir import read_json
from gpt_jax.types import Params, UserError, shapes_at


def model_config(config: Mapping[str, Any], tokenizer: Tokenizer) -> TransformerConfig:
  """The model of a run, with the tokenizer's vocabulary unless the config names a larger one."""
  model = dict(config['model'])
  model['vocab_size'] = model['vocab_size'] or tokenizer.vocab_size
  size, needed = model['vocab_size'], tokenizer.vocab_size
  if size < needed:
    raise UserError(f'config.model.vocab_size = {size} is less than the {needed} of the tokenizer; leave it out')
  return from_config(model)


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
    """See `marks_read`."""
    return marks_read(self.tokenizer, self.model.config)

  def decode(self, ids: Sequence[int]) -> str:
    """The text of tokens."""
    return tokenizers.decode(self.tokenizer, ids)


def marks_read(tokenizer: Tokenizer, model: TransformerConfig) -> Marks | None:
  """What blanks are written with, of a model that fills them: it reads both ways, and its vocabulary has marks."""
  return marks_of(tokenizer) if any(pattern.mask.looks_ahead for pattern in model.attention) else None


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
      like = shapes_at(like, place(like))
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
