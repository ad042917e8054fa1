"""GGUF files of our own writing, read again, and the one that was fetched."""

import dataclasses
import pathlib
import subprocess
import sys

from gguf import GGUFReader, GGUFWriter
import jax
import numpy as np
import pytest

from gpt_jax.data import assets, bpe
from gpt_jax.interop import gguf
from gpt_jax.interop.gguf_header import read_header
from gpt_jax.models.families import FAMILIES
from gpt_jax.models.heads import LanguageModel, parameter_shapes
from gpt_jax.models.positions import Llama3Scaling, NtkScaling, Rotary
from gpt_jax.models.transformer import unstack
from gpt_jax.types import UserError
from tests.interop.gguf_files import GPT2, GROUPED, MODELS, TIED, changed, saved, tensors
from tests.models.small import logits, parameters, random_tokens, shrunk

# ---- out and in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', MODELS)
def test_what_is_written_is_read_again_bit_for_bit(name, tmp_path):
  config = MODELS[name]
  pretrained = gguf.read(saved(tmp_path / 'model.gguf', config, context=77))
  model, params = pretrained.load()
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, dict(parameters(config)))
  jax.tree.map(np.testing.assert_array_equal, params, parameters(config))
  for field in ('mlp', 'residual', 'norm', 'rotation', 'tie_embeddings', 'use_bias', 'attention', 'head_width'):
    assert getattr(model.config, field) == getattr(config, field), field
  assert pretrained.context == (16 if 'gpt2' in name else 77)


def test_looped_layers_are_read_and_written_as_well(tmp_path):
  looped = dataclasses.replace(GROUPED, stacked=False)
  gguf.save(tmp_path / 'model.gguf', looped, unstack(parameters(GROUPED)))
  _, params = gguf.read(tmp_path / 'model.gguf').load(stacked=False)
  jax.tree.map(np.testing.assert_array_equal, params, unstack(parameters(GROUPED)))


def test_half_precision_rounds_matrices_and_leaves_vectors(tmp_path):
  path = saved(tmp_path / 'model.gguf', dtype='float16')
  _, params = gguf.read(path).load()
  rounded = jax.tree_util.tree_map_with_path(
    lambda path, x: x if path[-1].key == 'scale' else x.astype('float16').astype('float32'), dict(parameters(GROUPED))
  )
  jax.tree.map(np.testing.assert_array_equal, params, rounded)
  assert {t.dtype for name, t in tensors(path).items() if 'norm' in name} == {np.dtype('float32')}


def test_neighbours_in_the_file_are_half_a_head_apart_here(tmp_path):
  """The order of llama.cpp's converter, row by row."""
  stored = tensors(saved(tmp_path / 'model.gguf'))
  block = parameters(GROUPED)['params']['transformer']['blocks']['block_0']
  width = GROUPED.head_width
  for layer in range(GROUPED.num_layers):
    for theirs, ours in (('attn_q', 'query'), ('attn_k', 'key')):
      kernel = np.asarray(block['attention'][ours]['kernel'][layer])
      for head in range(kernel.shape[1]):
        for pair in range(width // 2):
          for half in range(2):
            row = stored[f'blk.{layer}.{theirs}.weight'][head * width + 2 * pair + half]
            np.testing.assert_array_equal(row, kernel[:, head, pair + half * width // 2])
    value = np.asarray(block['attention']['value']['kernel'][layer])
    np.testing.assert_array_equal(stored[f'blk.{layer}.attn_v.weight'], value.reshape(len(value), -1).T)


@pytest.mark.parametrize('scaling', [Llama3Scaling(8.0, 1.0, 4.0, 32), NtkScaling(3.0)])
def test_other_scalings_become_a_divisor_for_each_pair(scaling, tmp_path):
  config = shrunk('llama2_70b', rotation=Rotary(500.0, scaling=scaling))
  path = saved(tmp_path / 'model.gguf', config)
  expected = Rotary(500.0).frequencies(8) / Rotary(500.0, scaling=scaling).frequencies(8)
  np.testing.assert_allclose(tensors(path)['rope_freqs.weight'], expected, rtol=1e-6)
  model, params = gguf.read(path).load()
  tokens = random_tokens()
  found = logits(model.config, params, tokens)
  np.testing.assert_allclose(found, logits(config, parameters(config), tokens), atol=1e-5)
  assert np.abs(found - logits(GROUPED, params, tokens)).max() > 1e-3
  saved(tmp_path / 'again.gguf', model.config)
  assert gguf.read(tmp_path / 'again.gguf').config == model.config


def test_header_is_what_the_library_reads(tmp_path, monkeypatch):
  vocabulary = {'tokenizer.ggml.tokens': ['a', 'ü'], 'tokenizer.ggml.scores': [0.5, -1.0], 'tokenizer.ggml.pre': 'x'}
  monkeypatch.setattr(gguf, 'write_vocabulary', lambda _, size: vocabulary | {'tokenizer.ggml.add_bos_token': True})
  path = saved(tmp_path / 'model.gguf', dtype='float16')
  header, reader = read_header(path), GGUFReader(path)
  fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith('GGUF.')}
  assert header.metadata == fields
  assert header.metadata['llama.attention.layer_norm_rms_epsilon'] == np.float32(1e-5)
  theirs = {t.name: (t.tensor_type, tuple(t.shape[::-1].tolist()), t.data_offset, t.n_bytes) for t in reader.tensors}
  assert {name: (t.kind, t.shape, t.start, t.size) for name, t in header.tensors.items()} == theirs


def test_vocabulary_has_a_token_for_every_row(tmp_path):
  path, config = tmp_path / 'model.gguf', shrunk('llama2_70b', vocab_size=261)
  assert read_header(saved(path, config)).metadata['tokenizer.ggml.model'] == 'none'
  files = bpe.train(['ab'], 258).dump()
  gguf.save(path, config, parameters(config), files=files)
  metadata = read_header(path).metadata
  assert metadata['tokenizer.ggml.tokens'][-3:] == ['[PAD258]', '[PAD259]', '[PAD260]']
  assert metadata['tokenizer.ggml.token_type'] == [3] + [1] * 257 + [5] * 3
  small = shrunk('llama2_70b')
  with pytest.raises(UserError, match='has 258 tokens and the model 31') as raised:
    gguf.save(tmp_path / 'other.gguf', small, parameters(small), files=files)
  assert str(tmp_path / 'other.gguf') in str(raised.value)


@pytest.mark.parametrize('family', ['gpt1', 'gpt3_125m', 'glm_large', 'falcon_7b', 'chatglm2_6b'])
def test_a_model_that_no_layout_can_say_is_refused(family, tmp_path):
  config = shrunk(family)
  with pytest.raises(UserError, match='can not say this model'):
    gguf.save(tmp_path / 'model.gguf', config, parameters(config))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('fault', ['number', 'disk', 'dtype'])
def test_a_failure_leaves_the_file_that_was_there(fault, tmp_path, monkeypatch):
  path = saved(tmp_path / 'model.gguf', TIED)
  before = path.read_bytes()
  params = jax.tree.map(lambda x: x * (1e6 if fault == 'number' else 1), dict(parameters(GROUPED)))
  if fault == 'disk':
    monkeypatch.setattr(GGUFWriter, 'write_tensor_data', lambda *_: (_ for _ in ()).throw(OSError(28, 'No space')))
  message = {'number': 'too large for float16; use float32', 'disk': 'No space', 'dtype': "did you mean 'float16'"}
  with pytest.raises(UserError, match=message[fault]):
    gguf.save(path, GROUPED, params, dtype='float61' if fault == 'dtype' else 'float16')
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]


def test_repeated_embeddings_are_a_tied_model_and_others_are_not(tmp_path):
  path = saved(tmp_path / 'a', GPT2)
  embeddings = tensors(path)['token_embd.weight']
  again = changed(path, {}, {'output.weight': embeddings}, tmp_path / 'b')
  model, params = gguf.read(again).load()
  assert model.config.tie_embeddings
  jax.tree.map(np.testing.assert_array_equal, params, parameters(GPT2))
  other = embeddings.copy()
  other[-1, -1] += 1
  model, params = gguf.read(changed(path, {}, {'output.weight': other}, tmp_path / 'c')).load()
  assert not model.config.tie_embeddings
  np.testing.assert_array_equal(params['params']['unembed']['embedding'], other)


# ---- the real one ---------------------------------------------------------------------------------------------------

MEASURE = """
import sys, jax
from gpt_jax.interop import gguf
def status(key):
  return next(int(line.split()[1]) * 1024 for line in open('/proc/self/status') if line.startswith(key))
jax.block_until_ready(jax.numpy.zeros(3) + 1)
before = status('VmRSS')
open('/proc/self/clear_refs', 'w').write('5')
_, params = gguf.read(sys.argv[1]).load()
print((status('VmHWM') - before) / sum(x.nbytes for x in jax.tree.leaves(params)))
"""


@pytest.fixture(scope='module')
def smollm2() -> pathlib.Path:
  (path,) = assets.asset('smollm2').rglob('*.gguf')
  return path


@pytest.mark.assets
def test_smollm2_is_the_family_of_its_name(smollm2):
  pretrained = gguf.read(smollm2)
  family = FAMILIES['smollm2_135m']
  assert dataclasses.replace(pretrained.config, head_dim=None, init=family.init) == family
  assert pretrained.context == 8192
  shapes = parameter_shapes(LanguageModel(pretrained.config))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == 134_515_008


@pytest.mark.assets
@pytest.mark.skipif(sys.platform != 'linux', reason='memory is read from /proc')
def test_smollm2_is_loaded_in_little_more_memory_than_it_takes(smollm2):
  ran = subprocess.run([sys.executable, '-c', MEASURE, str(smollm2)], capture_output=True, text=True, check=True)
  assert 1 <= float(ran.stdout) < 1.3
