"""Writes a model in the form of another library: a folder that transformers opens, or a .gguf file.

python -m experiments.convert --source=MODEL --target=FOLDER|FILE.gguf [--dtype=float32] [--quantization=int8]

With --quantization, a folder that this program loads as it is: a model that was made small once. Only floats that are
not of linear layers are in --dtype there.
"""

import json
import pathlib
from typing import Any

from absl import flags

from experiments import command, language, quantization_flags
from gpt_jax.interop import gguf, huggingface
from gpt_jax.types import UserError

SOURCE = flags.DEFINE_string('source', None, language.MODEL)
TARGET = flags.DEFINE_string('target', None, 'a new folder, or a file whose name ends in .gguf')
DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16', 'float16'], 'of the tensors that are written')


def main(_: Any) -> None:
  source, target = command.required(SOURCE), pathlib.Path(command.required(TARGET)).expanduser()
  if target.exists():
    raise UserError(f'--target={target} is there already: choose another name')
  quantization = quantization_flags.given()
  if quantization and target.suffix == '.gguf':
    raise UserError('--quantization is of a folder; write the .gguf in float16, which llama-quantize makes small')
  trained = language.load(source, stacked=False, **quantization)
  files = along(trained)
  save = gguf.save if target.suffix == '.gguf' else huggingface.save
  save(target, trained.model.config, trained.params, context=trained.context, files=files, dtype=DTYPE.value)
  print(f'{target}: written from {source} in {DTYPE.value}' + ('' if files else ', without its tokenizer'))


def along(trained: language.Trained) -> dict[str, bytes]:
  """The files of the tokenizer and of generation; none where only this program knows the tokenizer."""
  files = trained.tokenizer.dump()
  if 'kind' in json.loads(files.get('tokenizer.json', b'{}')):
    return {}
  conventions = trained.tokenizer.conventions
  generation = {'bos_token_id': next(iter(conventions.begin), None), 'eos_token_id': list(conventions.ends)}
  return {'generation_config.json': json.dumps(generation).encode(), **files}


if __name__ == '__main__':
  command.run(main)
