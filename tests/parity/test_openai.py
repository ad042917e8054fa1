"""A checkpoint of the released code of GPT-2: read, written for transformers, and computed by transformers."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from gpt_jax.interop import huggingface, openai

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
pytestmark = pytest.mark.parity

MADE = pathlib.Path(__file__).parents[1] / 'interop' / 'data' / 'gpt2_original'


def test_transformers_computes_the_logits_of_the_released_code_and_has_its_tokenizer(tmp_path):
  source, target = tmp_path / 'openai', tmp_path / 'transformers'
  shutil.copytree(MADE, source)
  words = ['a', 'b', 'ab', 'Ġ', 'Ġab', 'c', 'd', 'e', 'f', 'g', '<|endoftext|>']
  (source / 'encoder.json').write_text(json.dumps({word: i for i, word in enumerate(words)}))
  (source / 'vocab.bpe').write_text('#version: 0.2\na b\nĠ ab\n')
  pretrained = openai.read(source)
  model, params = pretrained.load()
  huggingface.save(target, model.config, params, context=pretrained.context, files=pretrained.files)

  expected = load_file(MADE / 'expected.safetensors')
  theirs = transformers.AutoModelForCausalLM.from_pretrained(target).eval()
  with torch.no_grad():
    found = theirs(torch.from_numpy(expected['tokens'].astype(np.int64))).logits.numpy()
  np.testing.assert_allclose(found, expected['logits'], atol=2e-6)

  tokenizer = transformers.AutoTokenizer.from_pretrained(target)
  assert tokenizer('ab abba<|endoftext|>')['input_ids'] == [2, 4, 1, 0, 10]
  assert tokenizer.bos_token_id == tokenizer.eos_token_id == 10 and tokenizer.model_max_length == 6
