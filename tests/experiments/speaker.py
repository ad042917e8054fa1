"""A small model of other hands: a folder of transformers with a vocabulary, special tokens and a chat template."""

import json
import pathlib

import jax

from gpt_jax.data import bpe
from gpt_jax.interop import huggingface
from tests.data.test_conventions import CHATML
from tests.models.small import parameters, shrunk

TEXT = 'the quick brown fox jumps over the lazy dog; ' * 12
CONTEXT = 256


def save(folder: pathlib.Path) -> pathlib.Path:
  """A LLaMA with parameters far enough from their start to prefer some tokens, which begins every text with a token."""
  inner = bpe.train([TEXT], 300).inner
  inner.add_special_tokens(['<s>', '<|im_start|>', '<|im_end|>'])
  settings = {'bos_token': '<s>', 'eos_token': '<|im_end|>', 'add_bos_token': True, 'chat_template': CHATML}
  files = {'tokenizer.json': inner.to_str().encode(), 'tokenizer_config.json': json.dumps(settings).encode()}
  config = shrunk('smollm2_135m', vocab_size=inner.get_vocab_size())
  doubled = jax.tree.map(lambda x: 2 * x, dict(parameters(config)))
  huggingface.save(folder, config, doubled, context=CONTEXT, files=files)
  return folder
