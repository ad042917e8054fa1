"""Folders of Hugging Face's transformers, in and out: config.json and safetensors, tensor by tensor."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import json
import pathlib
import re
from typing import Any

import jax
from jax.tree_util import keystr
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gpt_jax.interop.forms import Shape, Tensor, flattened
from gpt_jax.interop.layouts import LAYOUTS, Entry, Layout
from gpt_jax.models.heads import LanguageModel, parameter_shapes
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.names import choose
from gpt_jax.types import Params, UserError

Folder = str | pathlib.Path

Read = Callable[[], Tensor]

BLOCK = re.compile(r'transformer/blocks(?:_(\d+))?/block_(\d+)/(.*)')

# What a config has beyond the model it describes: how it is made, trained and run.
_LOOSE = ('init', 'embedding_dropout', 'attention_dropout', 'residual_dropout', 'dtype', 'remat', 'stacked')


def read_config(folder: Folder) -> tuple[Layout, TransformerConfig]:
  """The layout and the model of a folder's config.json.

  Raises:
    UserError: there is none, or it is of a model that our parts can't compute.
  """
  path = pathlib.Path(folder) / 'config.json'
  try:
    config = json.loads(path.read_text())
    layout = choose(f'{path}: model_type', str(config.get('model_type')), LAYOUTS)
    return layout, layout.read(config)
  except FileNotFoundError:
    raise UserError(f'{folder} has no config.json: it is not the folder of a transformers model') from None
  except UserError as error:
    raise UserError(f'{folder}: {error}') from None
  except KeyError as error:
    raise UserError(f'{path} has no {error}') from None
  except (OSError, ValueError, TypeError, AttributeError) as error:
    raise UserError(f'{path}: not the config of a model ({error})') from None


def load(
  folder: Folder,
  *,
  place: Callable[[Params], Any] | None = None,
  **changed: Any,
) -> tuple[LanguageModel, Params]:
  """The model of a folder and its parameters in float32.

  A tensor at a time is read and put where it belongs, so that memory holds the parameters and one of them again.

  Args:
    folder: with config.json and model.safetensors, or the parts that model.safetensors.index.json names.
    place: gives the sharding of each parameter, of their shapes; None: the default device.
    changed: fields of the config, such as dtype or stacked.

  Raises:
    UserError: a file that is missing, broken or a pickle; a tensor that is missing, left over or of another shape.
  """
  folder = pathlib.Path(folder)
  layout, config = read_config(folder)
  model = LanguageModel(dataclasses.replace(config, **changed))
  shapes = parameter_shapes(model)
  shardings = None if place is None else place(shapes)
  with _tensors(folder) as tensors:
    source = _Source(folder, tensors, layout, model)

    def put(path: Any, shape: jax.ShapeDtypeStruct, sharding: Any = None) -> jax.Array:
      return jax.device_put(source.parameter(_name(path), shape.shape), sharding)

    params = jax.tree_util.tree_map_with_path(put, shapes, *([] if shardings is None else [shardings]))
    source.finish(config.tie_embeddings)
  return model, params


def save(folder: Folder, config: TransformerConfig, params: Params, *, model_type: str | None = None) -> None:
  """Writes a folder that transformers opens, in float32.

  Args:
    folder: is made; files of the same names are replaced.
    config: of the model.
    params: of LanguageModel(config).
    model_type: of LAYOUTS; None: the first that can say the config.

  Raises:
    UserError: no layout of transformers can say the config.
  """
  known = LAYOUTS if model_type is None else {model_type: choose('model_type', model_type, LAYOUTS)}
  name = next((name for name, layout in known.items() if _says(layout, config)), None)
  if name is None:
    raise UserError(f'no model_type of {", ".join(known)} can say this model: another part or field has no place there')
  layout, folder = known[name], pathlib.Path(folder)
  written = {'architectures': [layout.architecture], 'model_type': name, **layout.write(config), 'dtype': 'float32'}
  ours = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
  tensors = dict(_written(layout.entries(config), config, ours))
  folder.mkdir(parents=True, exist_ok=True)
  partial = folder / '.model.safetensors.partial'
  save_file(tensors, partial, metadata={'format': 'pt'})
  partial.replace(folder / 'model.safetensors')
  (folder / 'config.json').write_text(json.dumps(written, indent=2) + '\n')


def _says(layout: Layout, config: TransformerConfig) -> bool:
  """Whether a layout's config.json can say a model: read again, it is the same model."""
  try:
    again = layout.read(layout.write(config))
  except (UserError, ValueError, TypeError, AttributeError, KeyError):
    return False
  loose = {name: getattr(again, name) for name in _LOOSE}

  def plain(config: TransformerConfig) -> TransformerConfig:
    qkv_bias = config.use_bias if config.qkv_bias is None else config.qkv_bias
    positions = config.positions and config.positions.copy(stddev=0.0)
    return dataclasses.replace(config, head_dim=config.head_width, qkv_bias=qkv_bias, positions=positions, **loose)

  return plain(again) == plain(config)


def _written(
  entries: Sequence[Entry], config: TransformerConfig, ours: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
  for entry in entries:
    for layer in range(config.num_layers) if '{}' in entry.theirs else (None,):
      parts = []
      for path in entry.ours:
        array = _of_layer(ours, path, layer, len(config.attention))
        parts.append(np.asarray(array, np.float32).reshape(flattened(path, array.shape)))
      yield entry.theirs.format(layer), np.ascontiguousarray(entry.form.write(parts))


def _of_layer(ours: Mapping[str, Any], path: str, layer: int | None, period: int) -> Any:
  """A parameter of one layer, of stacked layers or looped ones; without a layer, the parameter of this path."""
  if layer is None:
    return ours[f'params/{path}']
  block = f'block_{layer % period}/{path}'
  looped = f'params/transformer/blocks_{layer // period}/{block}'
  return ours[looped] if looped in ours else ours[f'params/transformer/blocks/{block}'][layer // period]


class _Source:
  """The tensors of a folder, as parameters of ours."""

  def __init__(self, folder: pathlib.Path, tensors: Mapping[str, Read], layout: Layout, model: LanguageModel):
    self.folder = folder
    self.tensors = {name: read for name, read in tensors.items() if not re.search(layout.ignored, name)}
    self.left = set(self.tensors)
    self.period = len(model.config.attention)
    entries = layout.entries(model.config)
    self.holds = {path: (entry, place) for entry in entries for place, path in enumerate(entry.ours)}
    self.shapes: dict[str, Shape] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameter_shapes(model)):
      found = BLOCK.search(_name(path))
      inner = found[3] if found else _name(path).removeprefix('params/')
      shape = leaf.shape[1:] if found and found[1] is None else leaf.shape
      self.shapes[inner] = flattened(inner, shape)

  def parameter(self, path: str, shape: Shape) -> Tensor:
    """A parameter by its path; of stacked layers, all of them."""
    found = BLOCK.search(path)
    if not found:
      return self._part(path.removeprefix('params/'), 0).reshape(shape)
    period, block, inner = found[1], int(found[2]), found[3]
    if period is not None:
      return self._part(inner, int(period) * self.period + block).reshape(shape)
    stack = np.empty(shape, np.float32)
    for number in range(shape[0]):
      stack[number] = self._part(inner, number * self.period + block).reshape(shape[1:])
    return stack

  def _part(self, inner: str, layer: int) -> Tensor:
    if inner not in self.holds:
      raise UserError(f'{self.folder}: its model_type has no place for our {inner}')
    entry, place = self.holds[inner]
    name = self._found(entry.theirs.format(layer))
    self.left.discard(name)
    try:
      return entry.form.read(self.tensors[name](), [self.shapes[path] for path in entry.ours])[place].astype(np.float32)
    except ValueError as error:
      raise UserError(f'{self.folder}: tensor {name}: {error}; config.json is of another model') from None

  def _found(self, name: str) -> str:
    """The name in the file: models saved without their head have no first part."""
    for known in (name, name.partition('.')[2]):
      if known in self.tensors:
        return known
    raise UserError(f'{self.folder} has no tensor {name}: a file is missing, or config.json is of another model')

  def finish(self, tied: bool) -> None:
    """Every tensor was used, but for a head that repeats the embeddings."""
    left = self.left - ({'lm_head.weight'} if tied else set())
    if left:
      raise UserError(f'{self.folder} has {min(left)}, for which the model of its config.json has no place')


@contextlib.contextmanager
def _tensors(folder: pathlib.Path) -> Iterator[dict[str, Read]]:
  """What reads each tensor of a folder, by name."""
  index = folder / 'model.safetensors.index.json'
  if index.exists():
    try:
      files = {str(name) for name in json.loads(index.read_text())['weight_map'].values()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
      raise UserError(f'{index}: no weight_map of tensors and files ({error}); fetch it again') from None
  else:
    files = {'model.safetensors'}
  with contextlib.ExitStack() as stack:
    readers: dict[str, Read] = {}
    for name in sorted(files):
      path = folder / name
      if pathlib.Path(name).name != name:
        raise UserError(f'{index}: {name!r} is not the name of a file in its folder')
      if not path.exists():
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in ('.bin', '.pt', '.pth'))
        remedy = f'{pickles[0]} is a pickle, which can run code: convert it to safetensors' if pickles else 'fetch it'
        raise UserError(f'{folder} has no {name}; {remedy}')
      try:
        file = stack.enter_context(safe_open(path, framework='numpy'))
        readers |= {name: functools.partial(_read, path, file, name) for name in file.keys()}  # noqa: SIM118
      except (SafetensorError, OSError) as error:
        raise UserError(f'{path}: broken safetensors ({error}); fetch it again') from None
    yield readers


def _read(path: pathlib.Path, file: Any, name: str) -> Tensor:
  try:
    return file.get_tensor(name)
  except (SafetensorError, TypeError, ValueError) as error:
    raise UserError(f'{path}: tensor {name} can not be read ({error}); fetch it again') from None


def _name(path: Any) -> str:
  return keystr(path, simple=True, separator='/')
