"""The layout of our own quantised folders: a configuration of another library's, tensors by the paths of ours.

What other libraries and GGUF store in few bits has its scales in half precision, in blocks along the other axis or
without a place for one output's, and no layout of theirs is every family's. Ours is read as it was written.
"""

from collections.abc import Mapping
import dataclasses
import functools
import re
from typing import Any

from jax.tree_util import keystr, tree_leaves_with_path

from gpt_jax.interop.forms import Same
from gpt_jax.interop.layouts.table import Entry, Layout
from gpt_jax.models.heads import LanguageModel, parameter_shapes
from gpt_jax.models.parts import PARTS
from gpt_jax.models.quantization import Int4, Int8
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.names import choose

MODEL_TYPE = 'gpt_jax_quantized'
"""Of config.json, so that other libraries refuse it, instead of finding none of their tensors."""


def unwrapped(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], Int8 | Int4 | None]:
  """The configuration of the model, and how its kernels are stored."""
  if config.get('model_type') != MODEL_TYPE:
    return config, None
  fields = dict(config['quantization'])
  kind = choose('quantization: name', str(fields.pop('name', None)), PARTS['quantization'])
  return config['model'], kind(**fields)


def wrapped(config: Mapping[str, Any], quantization: Int8 | Int4) -> dict[str, Any]:
  """What `unwrapped` reads."""
  name = next(name for name, kind in PARTS['quantization'].items() if kind is type(quantization))
  fields = {'name': name, **dataclasses.asdict(quantization)}
  return {'model_type': MODEL_TYPE, 'quantization': fields, 'model': dict(config)}


def by_path(layout: Layout) -> Layout:
  """The layout of the same model whose tensors are named by the paths of ours."""
  return dataclasses.replace(layout, entries=_entries, ignored=r'$^', exact=r'\.kernel\.')


@functools.cache
def _entries(config: TransformerConfig) -> list[Entry]:
  # A period alone has all paths, and is soon thought through.
  config = dataclasses.replace(config, stacked=False, num_layers=len(config.attention))
  found = {}
  for path, _ in tree_leaves_with_path(parameter_shapes(LanguageModel(config))):
    name = keystr(path, simple=True, separator='/').removeprefix('params/')
    inner = re.sub(r'^transformer/blocks_0/block_\d+/', '', name)
    theirs = inner if inner == name else f'transformer/blocks/{{}}/{inner}'
    found[inner] = Entry(theirs.replace('/', '.'), (inner,), Same())
  return list(found.values())
