"""GGUF files that tests write, and write again with other contents."""

import pathlib
from typing import Any

from gguf import GGUFReader, GGUFWriter
import numpy as np

from gpt_jax.interop import gguf
from gpt_jax.models.positions import LinearScaling, Rotary
from gpt_jax.models.transformer import TransformerConfig
from tests.models.small import parameters, shrunk

MODELS = {
  'grouped, untied': shrunk('llama2_70b'),
  'tied': shrunk('smollm2_135m'),
  'multi-head, wide heads': shrunk('llama2_7b', head_dim=10),
  'multi-query, linear scaling': shrunk('llama2_7b', num_kv_heads=1, rotation=Rotary(5e5, scaling=LinearScaling(4.0))),
  'gpt2': shrunk('gpt2_small'),
  'gpt2, untied': shrunk('gpt2_small', tie_embeddings=False),
}
GROUPED, TIED, GPT2 = MODELS['grouped, untied'], MODELS['tied'], MODELS['gpt2']


def saved(path: pathlib.Path, config: TransformerConfig = GROUPED, **options) -> pathlib.Path:
  gguf.save(path, config, parameters(config), **options)
  return path


def tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  """As the library reads them."""
  return {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}


def changed(path: pathlib.Path, metadata: dict[str, Any], stored: dict[str, Any], to: pathlib.Path) -> pathlib.Path:
  """A file with other metadata (None: without it) and other tensors: arrays, or bytes of a type in rows."""
  reader = GGUFReader(path)
  writer = GGUFWriter(to, metadata.get('general.architecture', reader.fields['general.architecture'].contents()))
  for name, field in reader.fields.items():
    if not name.startswith('GGUF.') and name != 'general.architecture' and name not in metadata:
      sub_type = field.types[1] if len(field.types) > 1 else None
      writer.add_key_value(name, field.contents(), field.types[0], sub_type)
  for name, value in metadata.items():
    if value is not None and name != 'general.architecture':
      writer.add_key_value(name, value, gguf._value_type(value))
  for name, value in ({tensor.name: tensor.data for tensor in reader.tensors} | stored).items():
    if value is not None:
      data, kind = value if isinstance(value, tuple) else (np.array(value), None)
      writer.add_tensor(name, data, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return to
