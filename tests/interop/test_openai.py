"""A folder made by TensorFlow and the released code of GPT-2 (data/gpt2_original), and the same broken in every way."""

import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from gpt_jax.interop import openai
from gpt_jax.interop.layouts.gpt import original
from gpt_jax.interop.tensors import disassemble
from gpt_jax.models.families import FAMILIES
from gpt_jax.models.heads import LanguageModel, parameter_shapes
from gpt_jax.types import UserError

MADE = pathlib.Path(__file__).parent / 'data' / 'gpt2_original'
EXPECTED = load_file(MADE / 'expected.safetensors')
INDEX, DATA = 'model.ckpt.index', 'model.ckpt.data-00000-of-00001'
VOCABULARY = {'encoder.json': b'{"a": 0, "<|endoftext|>": 1}', 'vocab.bpe': b'#version: 0.2\n'}


def released(folder: pathlib.Path) -> pathlib.Path:
  """A copy of the folder, with what stands for its vocabulary."""
  shutil.copytree(MADE, folder, dirs_exist_ok=True)
  for name, content in VOCABULARY.items():
    (folder / name).write_bytes(content)
  return folder


@pytest.mark.parametrize('stacked', [True, False])
def test_logits_are_those_of_the_released_code(stacked):
  model, params = openai.read(MADE).load(stacked=stacked)
  found = jax.jit(model.apply)(params, jnp.asarray(EXPECTED['tokens']))[0]
  np.testing.assert_allclose(found, EXPECTED['logits'], atol=2e-6)


def test_written_in_their_layout_every_tensor_is_the_same():
  pretrained = openai.read(MADE)
  model, params = pretrained.load()
  assert original.write(model.config) == json.loads((MADE / 'hparams.json').read_text())
  assert original.says(model.config) and not original.says(FAMILIES['gpt1'])
  written = dict(disassemble(original, model.config, params))
  assert set(written) == set(EXPECTED) - {'tokens', 'logits'}
  for name, tensor in written.items():
    np.testing.assert_array_equal(tensor, EXPECTED[name], strict=True)


def test_published_hparams_are_our_families(tmp_path):
  sizes = {'gpt2_small': (768, 12, 12), 'gpt2_medium': (1024, 16, 24), 'gpt2_large': (1280, 20, 36),
           'gpt2_xl': (1600, 25, 48)}  # fmt: skip
  for name, (width, heads, layers) in sizes.items():
    hparams = {'n_vocab': 50257, 'n_ctx': 1024, 'n_embd': width, 'n_head': heads, 'n_layer': layers}
    (tmp_path / 'hparams.json').write_text(json.dumps(hparams))
    read, family = openai.read(tmp_path), FAMILIES[name]
    assert read.context == 1024
    ours, theirs = (jax.tree.map(np.shape, dict(parameter_shapes(LanguageModel(c)))) for c in (family, read.config))
    assert ours == theirs
    for field in ('mlp', 'residual', 'norm', 'rotation', 'tie_embeddings', 'use_bias', 'attention', 'num_heads'):
      assert getattr(read.config, field) == getattr(family, field), (name, field)


def test_the_tokenizer_comes_along_under_the_names_of_transformers(tmp_path):
  files = openai.read(released(tmp_path)).files
  assert set(files) == {'vocab.json', 'merges.txt', 'tokenizer_config.json'}
  assert (files['vocab.json'], files['merges.txt']) == tuple(VOCABULARY.values())
  config = json.loads(files['tokenizer_config.json'])
  assert config['bos_token'] == config['eos_token'] == '<|endoftext|>' and config['model_max_length'] == 6
  for name in VOCABULARY:
    (tmp_path / name).unlink()
  assert not openai.read(tmp_path).files


def test_the_checkpoint_is_the_one_that_its_folder_names(tmp_path):
  folder = released(tmp_path)
  (folder / 'checkpoint').unlink()
  _, params = openai.read(folder).load()
  for name in (INDEX, DATA):
    (folder / name).rename(folder / name.replace('.ckpt', '-1000'))
  (folder / 'checkpoint').write_text('model_checkpoint_path: "model-1000"\nall_model_checkpoint_paths: "model-9"\n')
  _, again = openai.read(folder).load()
  jax.tree.map(np.testing.assert_array_equal, again, params)


# ---- what is refused ------------------------------------------------------------------------------------------------


def hparams(folder: pathlib.Path, **fields) -> None:
  config = json.loads((folder / 'hparams.json').read_text()) | fields
  (folder / 'hparams.json').write_text(json.dumps({name: value for name, value in config.items() if value != 'absent'}))


def flipped(path: pathlib.Path, at: int) -> None:
  content = bytearray(path.read_bytes())
  content[at] ^= 4
  path.write_bytes(content)


BROKEN = {
  'no hparams': (lambda f: (f / 'hparams.json').unlink(), 'has no hparams.json'),
  'no JSON': (lambda f: (f / 'hparams.json').write_text('<?xml?>'), 'hparams.json: not the numbers of a model'),
  'a list': (lambda f: (f / 'hparams.json').write_text('[]'), 'hparams.json: not the numbers of a model'),
  'no field': (lambda f: hparams(f, n_ctx='absent'), "hparams.json has no 'n_ctx'"),
  'no number': (lambda f: hparams(f, n_vocab='11'), "not the numbers of a model (n_vocab = '11')"),
  'heads': (lambda f: hparams(f, n_head=3), 'model_dim = 8 must be a multiple of 3'),
  'no encoder': (lambda f: (f / 'encoder.json').unlink(), 'has no encoder.json'),
  'no merges': (lambda f: (f / 'vocab.bpe').unlink(), 'has no vocab.bpe'),
  'no index': (lambda f: (f / INDEX).unlink(), f'has no {INDEX}; fetch it'),
  'no data': (lambda f: (f / DATA).unlink(), f'has no {DATA}; fetch it'),
  'no such checkpoint': (
    lambda f: (f / 'checkpoint').write_text('model_checkpoint_path: "model-7"\n'), 'has no model-7.index; fetch it'
  ),
  'a checkpoint outside': (
    lambda f: (f / 'checkpoint').write_text('model_checkpoint_path: "/tmp/model"\n'), 'of files beside it'
  ),
  'empty index': (lambda f: (f / INDEX).write_bytes(b''), 'does not end as a table does'),
  'long index': (lambda f: (f / INDEX).write_bytes(bytes(2 << 20)), 'it is longer than 1048576 bytes'),
  'a page of errors': (lambda f: (f / INDEX).write_bytes(b'<Error>' * 20), 'does not end as a table does'),
  'index': (lambda f: flipped(f / INDEX, 100), 'a block does not have its checksum'),
  'empty data': (lambda f: (f / DATA).write_bytes(b''), f'{DATA} can not be read'),
  'short data': (lambda f: (f / DATA).write_bytes((MADE / DATA).read_bytes()[:-4]), f'{DATA} ends before tensor'),
  'data': (lambda f: flipped(f / DATA, 7000), 'does not have its checksum'),
  'shape': (lambda f: hparams(f, n_vocab=12), 'tensor model/wte: its shape is (11, 8), not (12, 8)'),
  'narrow': (lambda f: hparams(f, n_embd=4), 'its configuration is of another model'),
  'fewer layers': (lambda f: hparams(f, n_layer=1), 'has model/h1/attn/c_attn/b, for which'),
  'more layers': (lambda f: hparams(f, n_layer=3), 'has no tensor model/h2/'),
}  # fmt: skip


@pytest.mark.parametrize('name', BROKEN)
def test_a_wrong_folder_is_one_line(name, tmp_path):
  break_it, message = BROKEN[name]
  break_it(released(tmp_path))
  with pytest.raises(UserError, match=re.escape(message)) as raised:
    openai.read(tmp_path).load()
  assert '\n' not in str(raised.value) and str(tmp_path) in str(raised.value)
