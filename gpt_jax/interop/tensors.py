"""Named tensors of a file to parameters of ours and back, by the table of a layout."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr
import numpy as np

from gpt_jax.interop.forms import Shape, Tensor, flattened
from gpt_jax.interop.layouts.table import EMBEDDING, Entry, Layout
from gpt_jax.models.heads import LanguageModel, parameter_shapes
from gpt_jax.models.quantization import encoded
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.types import Params, UserError

Read = Callable[[], Tensor]
"""Reads one tensor when it is wanted."""

Place = Callable[[Params], Any]
"""The sharding of each parameter, of their shapes."""

BLOCK = re.compile(r'transformer/blocks(?:_(\d+))?/block_(\d+)/(.*)')


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A model in files of another library, its tensors not read yet."""

  name: str
  """Of the file or folder, for messages."""
  layout: Layout
  config: TransformerConfig
  context: int | None
  """The length in tokens that it was made for, where its configuration says."""
  files: Mapping[str, bytes]
  """What comes along, under the names transformers gives such files: tokenizer.json, generation_config.json, ..."""
  tensors: Callable[[], contextlib.AbstractContextManager[Mapping[str, Read]]]

  def load(self, *, place: Place | None = None, **changed: Any) -> tuple[LanguageModel, Params]:
    """The model and its parameters: in float32, or kernels quantised as the config or the files say.

    A tensor at a time is read and put where it belongs, so that memory holds the parameters and one of them again in
    float32: of stacked layers, one kind of all layers.

    Args:
      place: gives the sharding of each parameter, of their shapes; None: the default device.
      changed: fields of the config, such as dtype or stacked.

    Raises:
      UserError: a file that is missing, broken or a pickle; a tensor that is missing, left over or of another shape;
        a quantisation that does not fit, or files that have another one.
    """
    model = LanguageModel(dataclasses.replace(self.config, **changed))
    stored, wanted = self.config.quantization, model.config.quantization
    if stored is not None and stored != wanted:
      raise UserError(f'{self.name} is quantised already, as {stored}; load it so, or what it was made from')
    with self.tensors() as tensors:
      return model, _assemble(self.name, tensors, self.layout, model, place, quantized=stored is not None)


def _assemble(
  name: str,
  tensors: Mapping[str, Read],
  layout: Layout,
  model: LanguageModel,
  place: Place | None = None,
  quantized: bool = False,
) -> Params:
  quantization = model.config.quantization
  stored = model if quantized else LanguageModel(dataclasses.replace(model.config, quantization=None))
  source = _Source(name, tensors, layout, stored)  # which refuses a model of absurd depth before it is thought through
  parameters = parameter_shapes(model)
  tree: Any
  paths, tree = jax.tree_util.tree_flatten_with_path(source.parameters)
  wanted = tree.flatten_up_to(parameters)
  shardings = [None] * len(paths) if place is None else tree.flatten_up_to(place(parameters))
  arrays: list[Any] = [None] * len(paths)
  # The largest first, while there is room: each is held twice until its copy is made.
  for number in sorted(range(len(paths)), key=lambda number: -paths[number][1].size):
    path, shape = paths[number]
    part: Any = source.parameter(_name(path), shape.shape)
    if quantization is not None:
      part = encoded(quantization, part, wanted[number])
    arrays[number] = jax.block_until_ready(jax.device_put(part, shardings[number]))
  return jax.tree.unflatten(tree, arrays)


def disassemble(layout: Layout, config: TransformerConfig, params: Params) -> Iterator[tuple[str, np.ndarray]]:
  """Every tensor of a layout in float32, or integers as they are, by its name there, made when it is asked for."""
  ours = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
  for name, entry, layer in _places(layout, config):
    parts = []
    for path in entry.ours:
      array = _of_layer(ours, path, layer, len(config.attention))
      dtype = np.float32 if jnp.issubdtype(array.dtype, jnp.floating) else array.dtype
      parts.append(np.asarray(array, dtype).reshape(flattened(path, array.shape)))
    yield name, np.ascontiguousarray(entry.form.write(parts))


def narrowed(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
  """A tensor in the dtype that a file is written in; `name` is for messages.

  Raises:
    UserError: its numbers are too large for it.
  """
  with np.errstate(over='ignore'):
    narrow: np.ndarray = tensor.astype(jnp.dtype(dtype))
  if not np.isfinite(narrow).all() and np.isfinite(tensor).all():
    raise UserError(f'{name} has numbers too large for {dtype}; use float32')
  return narrow


def _places(layout: Layout, config: TransformerConfig) -> Iterator[tuple[str, Entry, int | None]]:
  """Every tensor of a model by name, with its entry and the number of a layer of ours, if it is of one."""
  for entry in layout.entries(config):
    for layer in range(config.num_layers) if '{}' in entry.theirs else (None,):
      yield entry.name(layer, config.num_layers), entry, layer


def _of_layer(ours: Mapping[str, Any], path: str, layer: int | None, period: int) -> Any:
  """A parameter of one layer, of stacked layers or looped ones; without a layer, the parameter of this path."""
  if layer is None:
    return ours[f'params/{path}']
  block = f'block_{layer % period}/{path}'
  looped = f'params/transformer/blocks_{layer // period}/{block}'
  return ours[looped] if looped in ours else ours[f'params/transformer/blocks/{block}'][layer // period]


class _Source:
  """The tensors of a file, as parameters of ours."""

  def __init__(self, name: str, tensors: Mapping[str, Read], layout: Layout, model: LanguageModel):
    self.name = name
    self.tensors = {name: read for name, read in tensors.items() if not re.search(layout.ignored, name)}
    # All are there and no others: known before any is read, and before a model of absurd depth is thought through.
    wanted = {self._found(theirs) for theirs, _, _ in _places(layout, model.config)}
    # A head that repeats the embeddings is no parameter.
    left = set(self.tensors) - wanted - ({layout.head} if model.config.tie_embeddings else set())
    if left:
      raise UserError(f'{name} has {min(left)}, for which the model of its configuration has no place')
    self.period, self.num_layers = len(model.config.attention), model.config.num_layers
    entries = layout.entries(model.config)
    self.holds = {path: (entry, place) for entry in entries for place, path in enumerate(entry.ours)}
    if model.config.tie_embeddings and layout.head in self.tensors:
      self._same_head(layout.head)
    self.shapes: dict[str, Shape] = {}
    self.dtypes: dict[str, Any] = {}
    self.parameters = parameter_shapes(model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(self.parameters):
      found = BLOCK.search(_name(path))
      inner = found[3] if found else _name(path).removeprefix('params/')
      shape = leaf.shape[1:] if found and found[1] is None else leaf.shape
      self.shapes[inner], self.dtypes[inner] = flattened(inner, shape), leaf.dtype

  def parameter(self, path: str, shape: Shape) -> Tensor:
    """A parameter by its path; of stacked layers, all of them."""
    found = BLOCK.search(path)
    if not found:
      return self._part(path.removeprefix('params/'), 0).reshape(shape)
    period, block, inner = found[1], int(found[2]), found[3]
    if period is not None:
      return self._part(inner, int(period) * self.period + block).reshape(shape)
    # The first layer before room is made for all: its shape may be refused.
    first = self._part(inner, block).reshape(shape[1:])
    stack = np.empty(shape, first.dtype)
    for number in range(shape[0]):
      stack[number] = self._part(inner, number * self.period + block).reshape(shape[1:]) if number else first
    return stack

  def _same_head(self, head: str) -> None:
    embedding = self._found(self.holds[EMBEDDING[0]][0].theirs)
    if not np.array_equal(self.tensors[head](), self.tensors[embedding]()):
      raise UserError(
        f'{self.name}: {head} is not the embedding, to which its configuration ties it; to keep both, set'
        ' tie_word_embeddings to false there'
      )

  def _part(self, inner: str, layer: int) -> Tensor:
    if inner not in self.holds:
      raise UserError(f'{self.name}: its layout has no place for our {inner}')
    entry, place = self.holds[inner]
    name = self._found(entry.name(layer, self.num_layers))
    try:
      part = entry.form.read(self.tensors[name](), [self.shapes[path] for path in entry.ours])[place]
      if np.issubdtype(self.dtypes[inner], np.integer) and part.dtype != self.dtypes[inner]:
        raise ValueError(f'its dtype is {part.dtype}, not {self.dtypes[inner]}')
      return part.astype(self.dtypes[inner], copy=False)
    except ValueError as error:
      raise UserError(f'{self.name}: tensor {name}: {error}; its configuration is of another model') from None

  def _found(self, name: str) -> str:
    """The name in the file: models saved without their head have no first part."""
    for known in (name, name.partition('.')[2]):
      if known in self.tensors:
        return known
    raise UserError(f'{self.name} has no tensor {name}: a file is missing, or its configuration is of another model')


def _name(path: Any) -> str:
  return keystr(path, simple=True, separator='/')
