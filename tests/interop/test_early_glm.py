"""GLM and ChatGLM-6B, against a reference of their releases' own tensors."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_leaves_with_path
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpt_jax.interop import huggingface
from gpt_jax.interop.forms import flattened
from gpt_jax.models.families import FAMILIES
from gpt_jax.models.heads import LanguageModel, parameter_shapes
from gpt_jax.types import Layout, UserError
from tests.interop import glm_reference as reference

GLM = {
  'architectures': ['GLMModel'], 'model_type': 'glm', 'attention_dropout_prob': 0.1, 'attention_scale': 1.0,
  'block_position_encoding': True, 'checkpoint_num_layers': 1, 'embedding_dropout_prob': 0.1,
  'initializer_range': 0.02, 'output_dropout_prob': 0.1, 'output_predict': True, 'parallel_output': True,
  'pool_token': 'cls', 'relative_encoding': False, 'spell_func': 'lstm', 'spell_length': None,
}  # fmt: skip
CHATGLM = {
  'architectures': ['ChatGLMModel'], 'model_type': 'chatglm', 'position_encoding_2d': True, 'pre_seq_len': None,
  'prefix_projection': False, 'quantization_bit': 0, 'use_cache': True, 'bos_token_id': 130004,
  'eos_token_id': 130005, 'gmask_token_id': 130001, 'mask_token_id': 130000, 'pad_token_id': 3,
}  # fmt: skip
SMALL_GLM = {
  **GLM, 'vocab_size': 37, 'hidden_size': 24, 'num_layers': 3, 'num_attention_heads': 3, 'max_sequence_length': 11,
}  # fmt: skip
SMALL_CHATGLM = {
  **CHATGLM, 'vocab_size': 37, 'hidden_size': 24, 'num_layers': 3, 'num_attention_heads': 3, 'inner_hidden_size': 40,
  'layernorm_epsilon': 1e-3, 'max_sequence_length': 32,
}  # fmt: skip
RELEASED = {
  'glm_large': {
    **GLM, 'vocab_size': 30592, 'hidden_size': 1024, 'num_layers': 24, 'num_attention_heads': 16,
    'max_sequence_length': 512,
  },
  'glm_10b': {
    **GLM, 'vocab_size': 50304, 'hidden_size': 4096, 'num_layers': 48, 'num_attention_heads': 64,
    'max_sequence_length': 1024,
  },
  'chatglm_6b': {
    **CHATGLM, 'vocab_size': 130528, 'hidden_size': 4096, 'num_layers': 28, 'num_attention_heads': 32,
    'inner_hidden_size': 16384, 'layernorm_epsilon': 1e-5, 'max_sequence_length': 2048,
  },
}  # fmt: skip
SIZES = ('model_type', 'vocab_size', 'hidden_size', 'num_layers', 'num_attention_heads', 'max_sequence_length')
SHAPES = {'glm': reference.glm_shapes, 'chatglm': reference.chatglm_shapes}
LOGITS = {'glm': reference.glm_logits, 'chatglm': reference.chatglm_logits}

MODELS = {
  'glm': SMALL_GLM,
  'chatglm': SMALL_CHATGLM,
  'chatglm untied': {**SMALL_CHATGLM, 'tie_word_embeddings': False},
  'chatglm of one layer': {**SMALL_CHATGLM, 'num_layers': 1},
}
ROWS = reference.filled((7, [(2, 3), (5, 2)]), (4, [(1, 8)]))
TOKENS = np.random.default_rng(1).integers(0, 37, ROWS.position.shape)


def saved(folder: pathlib.Path, config: reference.Json) -> reference.Tensors:
  """A folder as its release would have it, and its tensors."""
  tensors = reference.drawn(SHAPES[config['model_type']](config))
  if config['model_type'] == 'chatglm' and config.get('tie_word_embeddings', True):
    tensors['lm_head.weight'] = tensors['transformer.word_embeddings.weight']
  (folder / 'config.json').write_text(json.dumps(config))
  save_file(tensors, folder / 'model.safetensors')
  return tensors


def logits(folder: pathlib.Path, rows: reference.Rows = ROWS) -> np.ndarray:
  model, params = huggingface.read(folder).load()
  order = np.broadcast_to(np.arange(rows.position.shape[1]), rows.position.shape)
  layout = Layout(order, rows.position, rows.block, np.ones_like(order), order < rows.text[:, None])
  return np.asarray(jax.jit(model.apply)(params, jnp.asarray(TOKENS), jax.tree.map(jnp.asarray, layout))[0])


@pytest.mark.parametrize('name', MODELS)
def test_logits_are_the_releases(name, tmp_path):
  config = MODELS[name]
  theirs = LOGITS[config['model_type']](saved(tmp_path, config), config, TOKENS, ROWS)
  np.testing.assert_allclose(logits(tmp_path), theirs, atol=1e-4)
  assert theirs.std() > 0.5


@pytest.mark.parametrize('name', MODELS)
def test_every_norm_query_key_and_place_counts(name, tmp_path):
  """The reference with a part of it changed is another model: the test above would see it."""
  config = MODELS[name]
  tensors, model = saved(tmp_path, config), LOGITS[config['model_type']]
  theirs = model(tensors, config, TOKENS, ROWS)
  differs = lambda tensors, rows=ROWS: np.abs(model(tensors, config, TOKENS, rows) - theirs).max() > 1e-2
  for tensor in tensors:
    if tensor not in ('transformer.word_embeddings.weight', 'glm.word_embeddings.weight', 'lm_head.weight'):
      assert differs({**tensors, tensor: np.flip(tensors[tensor])}), tensor
  assert differs(tensors, ROWS._replace(position=ROWS.position + ROWS.block))
  assert differs(tensors, ROWS._replace(block=np.minimum(ROWS.block, 1)))
  assert differs(tensors, ROWS._replace(text=ROWS.text - 2))


@pytest.mark.parametrize('name', MODELS)
def test_written_again_every_tensor_is_the_same(name, tmp_path):
  config = MODELS[name]
  before = saved(tmp_path, config)
  if config.get('tie_word_embeddings', True):
    before.pop('lm_head.weight', None)
  found = huggingface.read(tmp_path)
  model, params = found.load()
  huggingface.save(tmp_path / 'again', model.config, params, context=found.context)
  after = load_file(tmp_path / 'again' / 'model.safetensors')
  assert set(after) == set(before)
  for tensor in before:
    np.testing.assert_array_equal(after[tensor], before[tensor], err_msg=tensor)
  written = json.loads((tmp_path / 'again' / 'config.json').read_text())
  assert {field: written[field] for field in SIZES} == {field: config[field] for field in SIZES}


@pytest.mark.parametrize('name', ['glm', 'chatglm'])
def test_names_without_their_first_part_and_old_tables_of_angles(name, tmp_path):
  config = MODELS[name]
  tensors = saved(tmp_path, config)
  before = logits(tmp_path)
  head = tensors.pop('lm_head.weight', None)
  tensors = {tensor.partition('.')[2]: value for tensor, value in tensors.items()}
  if head is not None:
    tensors['layers.0.attention.rotary_emb.inv_freq'] = np.ones(3, np.float16)
  save_file(tensors, tmp_path / 'model.safetensors')
  np.testing.assert_array_equal(logits(tmp_path), before)


def test_a_head_beside_the_embedding_must_be_it_where_both_are_one(tmp_path):
  tensors = saved(tmp_path, SMALL_CHATGLM)
  save_file({**tensors, 'lm_head.weight': np.flip(tensors['lm_head.weight']).copy()}, tmp_path / 'model.safetensors')
  with pytest.raises(UserError, match='is not the embedding, to which its configuration ties it'):
    huggingface.read(tmp_path).load()


def test_a_table_of_positions_keeps_its_length(tmp_path):
  """Whatever length a run read its texts in."""
  saved(tmp_path, SMALL_GLM)
  model, params = huggingface.read(tmp_path).load()
  huggingface.save(tmp_path / 'again', model.config, params, context=model.config.positions.length)
  again = huggingface.read(tmp_path / 'again')
  assert (again.context, again.config) == (11, model.config)


@pytest.mark.parametrize('family', RELEASED)
def test_every_tensor_of_a_release_has_its_place(family, tmp_path):
  """By name and shape, of the full size; nothing of it is held."""
  (tmp_path / 'config.json').write_text(json.dumps(RELEASED[family]))
  found = huggingface.read(tmp_path)
  assert found.config == FAMILIES[family]
  layers, entries = found.config.num_layers, found.layout.entries(found.config)
  ours = {}
  one = LanguageModel(dataclasses.replace(found.config, num_layers=1, stacked=False))
  for path, leaf in tree_leaves_with_path(parameter_shapes(one)):
    name = keystr(path, simple=True, separator='/').removeprefix('params/')
    name = name.removeprefix('transformer/blocks_0/block_0/')
    ours[name] = flattened(name, leaf.shape)
  shapes = SHAPES[RELEASED[family]['model_type']](RELEASED[family])
  shapes.pop('lm_head.weight', None)
  for entry in entries:
    wanted = [ours[path] for path in entry.ours]
    for layer in range(layers) if '{}' in entry.theirs else (None,):
      tensor = np.broadcast_to(np.float32(0), shapes.pop(entry.name(layer, layers)))
      assert [part.shape for part in entry.form.read(tensor, wanted)] == wanted
  assert not shapes
  assert {path for entry in entries for path in entry.ours} == set(ours)
