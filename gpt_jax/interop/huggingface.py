"""Folders of Hugging Face's transformers, in and out: config.json and safetensors, tensor by tensor.

And folders of the same form whose kernels are quantised, which only this program reads; see `layouts.quantized`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import json
import pathlib
import re
from types import MappingProxyType

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gpt_jax.interop.forms import Tensor
from gpt_jax.interop.layouts import early_glm, falcon, glm, gpt, llama, quantized
from gpt_jax.interop.layouts.table import Layout
from gpt_jax.interop.tensors import Pretrained, Read, disassemble, narrowed
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.names import choose
from gpt_jax.types import Params, UserError

Folder = str | pathlib.Path

INDEX = 'model.safetensors.index.json'

LAYOUTS: Mapping[str, Sequence[Layout]] = {
  'openai-gpt': (gpt.gpt1,),
  'gpt2': (gpt.gpt2,),
  'llama': (llama.llama,),
  'mistral': (llama.mistral,),
  'falcon': (falcon.falcon,),
  'glm': (early_glm.glm, glm.glm),
  'chatglm': (early_glm.chatglm, glm.chatglm),
}
"""By model_type of config.json; of several, the first whose mark a configuration has."""

ALONG = (
  'tokenizer.json', 'tokenizer.model', 'vocab.json', 'merges.txt', 'tokenizer_config.json', 'special_tokens_map.json',
  'chat_template.jinja', 'generation_config.json',
)  # fmt: skip
"""What comes along with weights: all that says how text becomes tokens, and where an answer ends."""


def read(folder: Folder) -> Pretrained:
  """The model of a folder: config.json, model.safetensors or the parts its index names, and what comes along.

  Raises:
    UserError: there is no config.json, or it is of a model that our parts can't compute.
  """
  folder = pathlib.Path(folder)
  path = folder / 'config.json'
  try:
    written = json.loads(path.read_text())
    if not isinstance(written, dict):
      raise ValueError('it is no object')
    config, quantization = quantized.unwrapped(written)
    layouts = choose(f'{path}: model_type', str(config.get('model_type')), LAYOUTS)
    layout = next(layout for layout in layouts if layout.mark is None or layout.mark in config)
    model = dataclasses.replace(layout.read(config), quantization=quantization)
    layout = layout if quantization is None else quantized.by_path(layout)
    context = config.get(layout.context)
    if context is not None and (type(context) is not int or context < 1):
      raise ValueError(f'{layout.context} = {context!r}')
    files = {name: (folder / name).read_bytes() for name in ALONG if (folder / name).is_file()}
  except FileNotFoundError:
    raise UserError(f'{folder} has no config.json: it is not the folder of a model') from None
  except UserError as error:
    raise UserError(f'{folder}: {error}') from None
  except KeyError as error:
    raise UserError(f'{path} has no {error}') from None
  except (OSError, ValueError, TypeError, AttributeError) as error:
    raise UserError(f'{path}: not the config of a model ({error})') from None
  return Pretrained(str(folder), layout, model, context, files, functools.partial(_tensors, folder))


def save(
  folder: Folder,
  config: TransformerConfig,
  params: Params,
  *,
  model_type: str | None = None,
  context: int | None = None,
  files: Mapping[str, bytes] = MappingProxyType({}),
  dtype: str = 'float32',
  part_bytes: int = 5_000_000_000,
) -> None:
  """Writes a folder that transformers opens, unless the config has a quantisation.

  Args:
    folder: is made; files of the same names are replaced.
    config: of the model.
    params: of LanguageModel(config).
    model_type: of LAYOUTS; None: the first that can say the config.
    context: the length in tokens that the model was made for; None: transformers' own default.
    files: of the tokenizer and of generation, by name, that are written beside.
    dtype: of the tensors, but for those of quantised kernels: float32, bfloat16 or float16.
    part_bytes: a larger model is written in parts of at most so many bytes (of one tensor at least) and an index.

  Raises:
    UserError: no layout of transformers can say the config, or the dtype its numbers; or it can't be written.
  """
  known = LAYOUTS if model_type is None else {model_type: choose('model_type', model_type, LAYOUTS)}
  said = ((name, layout) for name, layouts in known.items() for layout in layouts if layout.says(config))
  name, layout = next(said, (None, None))
  if layout is None:
    raise UserError(f'no model_type of {", ".join(known)} can say this model: another part or field has no place there')
  folder = pathlib.Path(folder)
  fields = {'architectures': [layout.architecture], 'model_type': name, **layout.write(config), 'dtype': dtype}
  if context is not None:
    fields.setdefault(layout.context, context)  # tables of positions have a length of their own
  if config.quantization is not None:
    layout, fields = quantized.by_path(layout), quantized.wrapped(fields, config.quantization)
  tensors = (
    (name, tensor if re.search(layout.exact, name) else narrowed(f'{folder}: {name}', tensor, dtype))
    for name, tensor in disassemble(layout, config, params)
  )
  try:
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, tensors, part_bytes)
    (folder / 'config.json').write_text(json.dumps(fields, indent=2) + '\n')
    for file, content in files.items():
      (folder / file).write_bytes(content)
  except (OSError, SafetensorError) as error:
    raise UserError(f'{folder} can not be written ({error})') from None


def _write(folder: pathlib.Path, tensors: Iterable[tuple[str, Tensor]], part_bytes: int) -> None:
  """model.safetensors, or numbered parts and their index: only one part is held in memory."""
  parts: list[list[str]] = []
  size = total = 0
  held: dict[str, Tensor] = {}
  partial = lambda number: folder / f'.model-{number}.safetensors.partial'

  def put() -> None:
    save_file(held, partial(len(parts)), metadata={'format': 'pt'})
    partial(len(parts)).chmod(0o644)  # the library makes it its writer's alone
    parts.append(list(held))
    held.clear()

  for name, tensor in tensors:
    if held and size + tensor.nbytes > part_bytes:
      put()
      size = 0
    held[name] = tensor
    size, total = size + tensor.nbytes, total + tensor.nbytes
  put()
  for old in (INDEX, 'model.safetensors'):
    (folder / old).unlink(missing_ok=True)
  if len(parts) == 1:
    partial(0).replace(folder / 'model.safetensors')
    return
  files = [f'model-{number:05}-of-{len(parts):05}.safetensors' for number in range(1, len(parts) + 1)]
  for number, file in enumerate(files):
    partial(number).replace(folder / file)
  weight_map = {name: file for file, names in zip(files, parts, strict=True) for name in names}
  index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
  (folder / INDEX).write_text(json.dumps(index, indent=2) + '\n')


@contextlib.contextmanager
def _tensors(folder: pathlib.Path) -> Iterator[dict[str, Read]]:
  """What reads each tensor of a folder, by name."""
  index = folder / INDEX
  if index.exists():
    try:
      files = {str(name) for name in json.loads(index.read_text())['weight_map'].values()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
      raise UserError(f'{index}: no weight_map of tensors and files ({error}); fetch it again') from None
  else:
    files = {'model.safetensors'}
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
      with safe_open(path, framework='numpy') as file:
        readers |= {name: functools.partial(_read, path, name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
      raise UserError(f'{path}: broken safetensors ({error}); fetch it again') from None
  yield readers


def _read(path: pathlib.Path, name: str) -> Tensor:
  """A tensor of a file, opened for it alone: pages of a file stay in memory while it is open."""
  try:
    with safe_open(path, framework='numpy') as file:
      return file.get_tensor(name)
  except (SafetensorError, TypeError, ValueError) as error:
    raise UserError(f'{path}: tensor {name} can not be read ({error}); fetch it again') from None
