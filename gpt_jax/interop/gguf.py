"""GGUF files of llama.cpp, in and out: one file with metadata, tokenizer and tensors, read tensor by tensor."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import functools
import pathlib
from types import MappingProxyType
from typing import Any, BinaryIO

import gguf
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType, GGUFWriter
import numpy as np

from gpt_jax.interop.forms import Tensor
from gpt_jax.interop.gguf_header import Header, Stored, read_header
from gpt_jax.interop.layouts.ggml import DIVISORS, LAYOUTS, MOST, OUTPUT, by_pair
from gpt_jax.interop.layouts.table import Layout
from gpt_jax.interop.tensors import Pretrained, Read, disassemble, narrowed
from gpt_jax.interop.vocabularies import read_vocabulary, write_vocabulary
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.names import choose
from gpt_jax.types import Params, UserError

READABLE = (
  Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K,
)  # fmt: skip

WRITABLE = {'float32': Kind.F32, 'float16': Kind.F16}

# The bytes of a tensor that are turned to float32 at once.
PIECE = 2**16

TOKENS = 'tokenizer.ggml.tokens'


def read(path: str | pathlib.Path) -> Pretrained:
  """The model of a GGUF file, its numbers not read yet.

  A file that repeats the embeddings as output.weight, byte for byte, is of a tied model. Where the two differ, if only
  because they were quantised differently, they are two parameters, as for llama.cpp.

  Raises:
    UserError: no such file, a broken one, or one of a model or in a type of numbers that is not supported.
  """
  path = pathlib.Path(path)
  header = read_header(path)
  metadata = header.metadata
  try:
    layout = choose('general.architecture', str(metadata.get('general.architecture'))[:40], LAYOUTS)
    if metadata.get('split.count', 1) != 1:
      raise UserError('is one of several parts; join them by llama-gguf-split --merge')
    for name, stored in header.tensors.items():
      if stored.kind not in READABLE:
        known = ', '.join(kind.name for kind in READABLE)
        raise UserError(f'tensor {name} is in {stored.kind.name}, which is not supported; known: {known}')
    config = layout.read({**metadata, **_divisors(path, header)})
    config = dataclasses.replace(config, tie_embeddings=_is_tied(path, header))
    files = read_vocabulary(metadata) if TOKENS in metadata else {}
  except UserError as error:
    raise UserError(f'{path}: {error}') from None
  except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
    raise UserError(f'{path}: its metadata is not of a model ({error})') from None
  context = metadata.get(layout.context)
  return Pretrained(str(path), layout, config, context, files, functools.partial(_tensors, path, header.tensors))


def save(
  path: str | pathlib.Path,
  config: TransformerConfig,
  params: Params,
  *,
  dtype: str = 'float32',
  context: int | None = None,
  files: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
  """Writes a file that llama.cpp opens; one that stands there is replaced when the new one is whole.

  Args:
    path: of the file; its folder is made.
    config: of the model.
    params: of LanguageModel(config).
    dtype: of matrices, float32 or float16; vectors are float32 always, as llama.cpp wants them.
    context: the length in tokens that the model was made for, unless learned positions say it; None: 2048.
    files: of the tokenizer and of generation, by name, as transformers has them; without any, the file says that it
      has no vocabulary.

  Raises:
    UserError: the file can't say this model, its tokenizer or its numbers, or can't be written.
  """
  path = pathlib.Path(path)
  if config.quantization is not None:
    raise UserError(f'{path}: our quantisation has no place in GGUF; write float16, which llama-quantize makes small')
  name, layout = next(((name, layout) for name, layout in LAYOUTS.items() if _says(layout, config)), (None, None))
  if name is None or layout is None:
    raise UserError(f'{path}: GGUF files of {" or ".join(LAYOUTS)} can not say this model: a part has no place there')
  if context is not None and not 1 <= context <= MOST['context_length']:
    raise UserError(f'{path}: context = {context} is not a number of tokens')
  kind = choose('dtype', dtype, WRITABLE)
  metadata = {layout.context: context or 2048, **layout.write(by_pair(config)), **_vocabulary(path, config, files)}
  metadata['general.file_type'] = int(gguf.LlamaFileType[f'{"ALL" if kind is Kind.F32 else "MOSTLY"}_{kind.name}'])

  def tensors() -> Iterator[tuple[str, np.ndarray]]:
    if DIVISORS in metadata:
      yield DIVISORS, np.array(metadata[DIVISORS], np.float32)
    for name, tensor in disassemble(layout, config, params):
      yield name, narrowed(f'{path}: {name}', tensor, dtype) if tensor.ndim > 1 else tensor

  partial = path.with_name(f'.{path.name}.partial')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(GGUFWriter(partial, name)) as writer:
      for key, value in metadata.items():
        if key != DIVISORS:
          writer.add_key_value(key, value, _value_type(value))
      # Twice through all, so that one tensor at a time is held.
      for name, tensor in tensors():
        writer.add_tensor_info(name, tensor.shape, tensor.dtype, tensor.nbytes)
      writer.write_header_to_file()
      writer.write_kv_data_to_file()
      writer.write_ti_data_to_file()
      for _, tensor in tensors():
        writer.write_tensor_data(tensor)
    partial.replace(path)
  except OSError as error:
    raise UserError(f'{path} can not be written ({error.strerror})') from None
  finally:
    with contextlib.suppress(OSError):
      partial.unlink()


# ---- reading --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _tensors(path: pathlib.Path, table: Mapping[str, Stored]) -> Iterator[dict[str, Read]]:
  try:
    with path.open('rb') as file:
      yield {name: functools.partial(_tensor, path, file, stored) for name, stored in table.items()}
  except OSError as error:
    raise UserError(f'{path} can not be read ({error.strerror})') from None


def _tensor(path: pathlib.Path, file: BinaryIO, stored: Stored) -> Tensor:
  """A tensor in float32, by pieces: the library holds what it makes twice."""
  tensor = np.empty(stored.shape, np.float32)
  rows = tensor.reshape(-1, stored.shape[-1])
  step = max(1, PIECE // stored.row)
  file.seek(stored.start)
  for start in range(0, len(rows), step):
    piece = rows[start : start + step]
    data = np.fromfile(file, np.uint8, len(piece) * stored.row)
    if len(data) < len(piece) * stored.row:
      raise UserError(f'{path} has become shorter while it was read')
    with np.errstate(all='ignore'):  # a wrong bit can make a scale infinite: then so are the numbers
      piece[:] = gguf.quants.dequantize(data, stored.kind).reshape(piece.shape)
  return tensor


def _divisors(path: pathlib.Path, header: Header) -> dict[str, list[float]]:
  """The one tensor that is of the configuration."""
  if DIVISORS not in header.tensors:
    return {}
  with _tensors(path, header.tensors) as tensors:
    return {DIVISORS: tensors[DIVISORS]().ravel().tolist()}


def _is_tied(path: pathlib.Path, header: Header) -> bool:
  embedding, output = (header.tensors.get(name) for name in ('token_embd.weight', OUTPUT))
  if embedding is None or output is None:
    return output is None
  if (embedding.kind, embedding.shape) != (output.kind, output.shape):
    return False
  with path.open('rb') as file:

    def piece(stored: Stored, at: int) -> bytes:
      file.seek(stored.start + at)
      return file.read(min(PIECE, stored.size - at))

    return all(piece(embedding, at) == piece(output, at) for at in range(0, output.size, PIECE))


# ---- writing --------------------------------------------------------------------------------------------------------


def _says(layout: Layout, config: TransformerConfig) -> bool:
  """Whether a file can say a model: in its metadata, or by having some tensors or not."""
  return layout.says(by_pair(dataclasses.replace(config, tie_embeddings=True)))


def _vocabulary(path: pathlib.Path, config: TransformerConfig, files: Mapping[str, bytes]) -> dict[str, Any]:
  """The tokenizer's metadata, with a token for every row of the embeddings: llama.cpp takes no fewer."""
  try:
    metadata = write_vocabulary(files, size=config.vocab_size)
  except UserError as error:
    raise UserError(f'{path}: {error}') from None
  return {key: value for key, value in metadata.items() if value not in ('', [])}


def _value_type(value: Any) -> GGUFValueType:
  """llama.cpp wants its counts unsigned."""
  return GGUFValueType.UINT32 if type(value) is int else GGUFValueType.get_type(value)
