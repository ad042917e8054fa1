"""Models of other libraries by name: a folder, a file, or the Hugging Face hub."""

import contextlib
import pathlib
import re

from gpt_jax.interop import gguf, huggingface, openai
from gpt_jax.interop.tensors import Pretrained
from gpt_jax.types import UserError

HUB = re.compile(r'hf://([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+\.gguf))?')


def pretrained(name: str) -> Pretrained:
  """The model of a name, its tensors not read yet.

  A folder of transformers or of openai/gpt-2, a .gguf file, or hf://OWNER/NAME[@REVISION][/FILE.gguf], fetched once.

  Raises:
    UserError: there is no such model, or it is one that we can't read.
  """
  path = _fetched(name) if name.startswith('hf://') else pathlib.Path(name).expanduser()
  if (path / 'hparams.json').exists():
    return openai.read(path)
  if path.is_dir():
    return huggingface.read(path)
  if path.suffix == '.gguf' and path.is_file():
    return gguf.read(path)
  raise UserError(f'{name} is not a folder with config.json, a .gguf file or hf://OWNER/NAME')


def _fetched(name: str) -> pathlib.Path:
  """The folder or file of a model of the hub."""
  found = HUB.fullmatch(name)
  if not found:
    raise UserError(f'{name!r} is not of the form hf://OWNER/NAME[@REVISION][/FILE.gguf]')
  repository, revision, file = found.groups()
  import huggingface_hub

  try:
    if file:
      return pathlib.Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
    files = huggingface_hub.HfApi().list_repo_files(repository, revision=revision)
    wanted = [*huggingface.ALONG, 'config.json', '*.safetensors', '*.safetensors.index.json']
    if any(name.endswith('.safetensors') for name in files):
      return pathlib.Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=wanted))
  except Exception as error:  # no network, no such model, no right to it: the library says which
    with contextlib.suppress(Exception):
      return pathlib.Path(huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True))
    said = ' '.join((str(error).splitlines() or [type(error).__name__])[0].split())
    raise UserError(f'{name} could not be fetched ({said})') from None
  whole = [name for name in files if name.endswith('.gguf')]
  if whole:
    raise UserError(f'{name} has no safetensors; name one of its files: {name}/{whole[0]}')
  pickles = [name for name in files if name.endswith(('.bin', '.pt', '.pth'))]
  why = f': {pickles[0]} is a pickle, which can run code' if pickles else ''
  raise UserError(f'{name} has no safetensors{why}; choose a revision that has them')
