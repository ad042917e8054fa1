"""Folders of GPT-2 as OpenAI released it (openai/gpt-2, download_model.py): hparams.json, a checkpoint of TensorFlow,
encoder.json and vocab.bpe.
"""

from collections.abc import Iterator
import contextlib
import functools
import json
import pathlib
import re

from gpt_jax.interop import bundles
from gpt_jax.interop.layouts.gpt import original
from gpt_jax.interop.tensors import Pretrained, Read
from gpt_jax.types import UserError

HPARAMS = ('n_vocab', 'n_ctx', 'n_embd', 'n_head', 'n_layer')
TOKENIZER = {'encoder.json': 'vocab.json', 'vocab.bpe': 'merges.txt'}
"""Their names, and transformers' of the same bytes."""
END_OF_TEXT = '<|endoftext|>'


def read(folder: str | pathlib.Path) -> Pretrained:
  """The model of a folder.

  The tokenizer comes along where the folder has it; model.ckpt.meta, the graph, is not read.

  Raises:
    UserError: there is no hparams.json, or it is not of a model; of encoder.json and vocab.bpe there is only one.
  """
  folder = pathlib.Path(folder)
  path = folder / 'hparams.json'
  try:
    hparams = json.loads(path.read_text())
    for name in HPARAMS:
      if not isinstance(hparams[name], int) or hparams[name] < 1:
        raise ValueError(f'{name} = {hparams[name]!r}')
    config, context = original.read(hparams), hparams[original.context]
    files = _tokenizer(folder, context)
  except FileNotFoundError:
    raise UserError(f'{folder} has no hparams.json: it is not the folder of a model of openai/gpt-2') from None
  except KeyError as error:
    raise UserError(f'{path} has no {error}') from None
  except (OSError, ValueError, TypeError, AttributeError) as error:
    raise UserError(f'{path}: not the numbers of a model ({error}); fetch it again') from None
  return Pretrained(str(folder), original, config, context, files, functools.partial(_tensors, folder))


def _tokenizer(folder: pathlib.Path, context: int) -> dict[str, bytes]:
  files = {known: (folder / name).read_bytes() for name, known in TOKENIZER.items() if (folder / name).is_file()}
  if not files:
    return {}
  for name, known in TOKENIZER.items():
    if known not in files:
      raise UserError(f'{folder} has no {name}, which is half of its tokenizer; fetch it')
  # What the code of the release says, and no file of it.
  config = {
    'tokenizer_class': 'GPT2Tokenizer', 'bos_token': END_OF_TEXT, 'eos_token': END_OF_TEXT, 'unk_token': END_OF_TEXT,
    'add_prefix_space': False, 'model_max_length': context,
  }  # fmt: skip
  return {**files, 'tokenizer_config.json': json.dumps(config, indent=2).encode()}


@contextlib.contextmanager
def _tensors(folder: pathlib.Path) -> Iterator[dict[str, Read]]:
  yield bundles.tensors(_checkpoint(folder))


def _checkpoint(folder: pathlib.Path) -> pathlib.Path:
  """What the file `checkpoint` names: model.ckpt of the release, model-STEP of those who trained it on."""
  path = folder / 'checkpoint'
  if not path.is_file():
    return folder / 'model.ckpt'
  found = re.match(r'model_checkpoint_path: "([^"/\\]+)"$', path.read_text(errors='replace'), re.MULTILINE)
  if not found:
    raise UserError(f'{path}: it does not begin with model_checkpoint_path: "NAME", of files beside it; fetch it again')
  return folder / found[1]
