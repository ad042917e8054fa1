"""Folders of our own writing read again, and folders that are broken in every way."""

import dataclasses
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpt_jax.data import tokenizers
from gpt_jax.interop import huggingface
from gpt_jax.interop.forms import Interleaved, Transposed
from gpt_jax.models.families import FAMILIES
from gpt_jax.models.heads import LanguageModel, parameter_shapes
from gpt_jax.models.positions import Alibi, FalconAlibi, LinearScaling, Rotary
from gpt_jax.models.residual import Parallel, PreNorm
from gpt_jax.models.transformer import TransformerConfig, unstack
from gpt_jax.sharding import Placement, make_mesh
from gpt_jax.types import UserError
from tests.models.small import parameters, shrunk

WRITABLE = {  # a family, and the model_type that says it first
  'gpt1': 'openai-gpt', 'gpt2_small': 'gpt2', 'llama_7b': 'llama', 'llama2_70b': 'llama', 'smollm2_135m': 'llama',
  'falcon_7b': 'falcon', 'falcon_40b': 'falcon', 'chatglm2_6b': 'glm', 'glm_large': 'glm', 'chatglm_6b': 'chatglm',
}  # fmt: skip


def small(family: str) -> TransformerConfig:
  """Four times as wide inside as outside, as GPT-1 always is there."""
  return shrunk(family, mlp=FAMILIES[family].mlp.copy(hidden=128))


def saved(folder: pathlib.Path, family: str = 'llama2_70b', model_type: str | None = None, **fields) -> pathlib.Path:
  config = dataclasses.replace(small(family), **fields)
  huggingface.save(folder, config, parameters(config), model_type=model_type)
  return folder


FALCON_RW = {'residual': PreNorm(), 'rotation': None, 'score_bias': FalconAlibi(), 'use_bias': True}
WRITTEN = {
  **{family: (family, model_type, {}) for family, model_type in WRITABLE.items()},
  'chatglm2_6b as itself': ('chatglm2_6b', 'chatglm', {}),
  'chatglm3, longer': ('chatglm2_6b', 'chatglm', {'rotation': Rotary(500_000.0, fraction=0.5), 'qkv_bias': False}),
  'chatglm with every bias': ('chatglm2_6b', 'chatglm', {'use_bias': True}),
  'chatglm2, divided places': ('chatglm2_6b', 'chatglm', {'rotation': Rotary(fraction=0.5, scaling=LinearScaling(4))}),
  'chatglm_6b untied': ('chatglm_6b', 'chatglm', {'tie_embeddings': False}),
  'glm tied, a quarter turned': ('chatglm2_6b', 'glm', {'rotation': Rotary(fraction=0.25), 'tie_embeddings': True}),
  'falcon rw': ('falcon_7b', 'falcon', {**FALCON_RW, 'num_kv_heads': 4}),
  'falcon rw, multi-query': ('falcon_7b', 'falcon', FALCON_RW),
  'falcon parallel with alibi': ('falcon_40b', 'falcon', {**FALCON_RW, 'residual': Parallel(shared_norm=False)}),
}


@pytest.mark.parametrize('name', WRITTEN)
def test_what_is_written_is_read_again_bit_for_bit(name, tmp_path):
  family, model_type, fields = WRITTEN[name]
  config = dataclasses.replace(small(family), **fields)
  folder = saved(tmp_path / 'model', family, None if name in WRITABLE else model_type, **fields)
  assert json.loads((folder / 'config.json').read_text())['model_type'] == model_type
  model, params = huggingface.read(folder).load()
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, dict(parameters(config)))
  jax.tree.map(np.testing.assert_array_equal, params, parameters(config))
  assert (model.config.mlp, model.config.residual, model.config.norm) == (config.mlp, config.residual, config.norm)
  assert (model.config.rotation, model.config.use_bias) == (config.rotation, config.use_bias)
  assert model.config.score_bias == config.score_bias


@pytest.mark.parametrize('family', ['gpt3_125m', 'glm_130b'])
def test_a_model_that_no_layout_can_say_is_refused(family, tmp_path):
  config = shrunk(family)
  with pytest.raises(UserError, match='can say this model'):
    huggingface.save(tmp_path / 'model', config, parameters(config))
  assert not (tmp_path / 'model').exists()


def test_published_configs_are_our_families(tmp_path):
  """config.json of the released models, as far as they say what the model is."""
  published = {
    'gpt1': {'model_type': 'openai-gpt', 'afn': 'gelu', 'n_embd': 768, 'n_head': 12, 'n_layer': 12,
             'n_positions': 512, 'vocab_size': 40478},
    'gpt2_xl': {'model_type': 'gpt2', 'activation_function': 'gelu_new', 'n_embd': 1600, 'n_head': 25, 'n_layer': 48,
                'n_positions': 1024, 'vocab_size': 50257},
    'llama2_70b': {'model_type': 'llama', 'hidden_size': 8192, 'intermediate_size': 28672, 'num_attention_heads': 64,
                   'num_hidden_layers': 80, 'num_key_value_heads': 8, 'rms_norm_eps': 1e-5, 'vocab_size': 32000},
    'smollm2_135m': {'model_type': 'llama', 'hidden_size': 576, 'intermediate_size': 1536, 'num_attention_heads': 9,
                     'num_hidden_layers': 30, 'num_key_value_heads': 3, 'rms_norm_eps': 1e-5, 'rope_theta': 100000,
                     'tie_word_embeddings': True, 'vocab_size': 49152},
    'falcon_7b': {'model_type': 'falcon', 'alibi': False, 'bias': False, 'hidden_size': 4544,
                  'layer_norm_epsilon': 1e-5, 'multi_query': True, 'new_decoder_architecture': False,
                  'num_attention_heads': 71, 'num_hidden_layers': 32, 'parallel_attn': True, 'vocab_size': 65024},
    'falcon_40b': {'model_type': 'falcon', 'alibi': False, 'bias': False, 'hidden_size': 8192,
                   'layer_norm_epsilon': 1e-5, 'multi_query': True, 'new_decoder_architecture': True,
                   'num_attention_heads': 128, 'num_kv_heads': 8, 'num_hidden_layers': 60, 'parallel_attn': True,
                   'vocab_size': 65024},
    'chatglm2_6b': {'model_type': 'chatglm', '_name_or_path': 'THUDM/chatglm2-6b', 'add_bias_linear': False,
                    'add_qkv_bias': True, 'apply_query_key_layer_scaling': True,
                    'apply_residual_connection_post_layernorm': False, 'attention_softmax_in_fp32': True,
                    'ffn_hidden_size': 13696, 'fp32_residual_connection': False, 'hidden_size': 4096,
                    'kv_channels': 128, 'layernorm_epsilon': 1e-5, 'multi_query_attention': True,
                    'multi_query_group_num': 2, 'num_attention_heads': 32, 'num_layers': 28, 'original_rope': True,
                    'padded_vocab_size': 65024, 'post_layer_norm': True, 'quantization_bit': 0, 'rmsnorm': True,
                    'seq_length': 32768, 'tie_word_embeddings': False},
  }  # fmt: skip
  for name, config in published.items():
    (tmp_path / 'config.json').write_text(json.dumps(config))
    read = huggingface.read(tmp_path).config
    ours, theirs = (jax.tree.map(np.shape, dict(parameter_shapes(LanguageModel(c)))) for c in (FAMILIES[name], read))
    assert ours == theirs, name
    for field in ('mlp', 'residual', 'norm', 'rotation', 'tie_embeddings', 'use_bias', 'attention'):
      assert getattr(read, field) == getattr(FAMILIES[name], field), (name, field)


def test_a_rope_ratio_divides_places_in_chatglm2_alone(tmp_path):
  folder = saved(tmp_path, 'chatglm2_6b', 'chatglm')
  for name, rotation in {
    'THUDM/chatglm2-6b-32k': Rotary(fraction=0.5, scaling=LinearScaling(4)),
    'THUDM/chatglm3-6b-32k': Rotary(40_000.0, fraction=0.5),
    'absent': Rotary(40_000.0, fraction=0.5),
  }.items():
    reconfigured(folder, _name_or_path=name, rope_ratio=4)
    assert huggingface.read(folder).config.rotation == rotation, name


def test_the_published_config_of_falcon_rw_has_its_alibi(tmp_path):
  published = {
    'model_type': 'falcon', 'alibi': True, 'bias': True, 'hidden_size': 2048, 'layer_norm_epsilon': 1e-5,
    'multi_query': False, 'new_decoder_architecture': False, 'num_attention_heads': 32, 'num_hidden_layers': 24,
    'parallel_attn': False, 'vocab_size': 50304,
  }  # fmt: skip
  (tmp_path / 'config.json').write_text(json.dumps(published))
  config = huggingface.read(tmp_path).config
  assert (config.residual, config.rotation, config.score_bias) == (PreNorm(), None, FalconAlibi())
  assert sum(x.size for x in jax.tree.leaves(parameter_shapes(LanguageModel(config)))) == 1_311_625_216


def test_neighbours_of_a_rotary_pair_by_hand():
  """Two heads of 6, of which 4 dimensions turn: theirs pairs (0, 1) and (2, 3), ours (0, 2) and (1, 3)."""
  form, theirs = Interleaved(Transposed(), head_width=6, turned=4), np.arange(3 * 12).reshape(3 * 12, 1)
  query, key, value = form.read(theirs, [(1, 12)] * 3)
  np.testing.assert_array_equal(query[0], [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11])
  np.testing.assert_array_equal(key, query + 12)
  np.testing.assert_array_equal(value[0], np.arange(24, 36))
  np.testing.assert_array_equal(form.write([query, key, value]), theirs)


def test_parts_of_a_model_and_their_index(tmp_path):
  folder = saved(tmp_path)
  tensors = load_file(folder / 'model.safetensors')
  (folder / 'model.safetensors').unlink()
  names = sorted(tensors)
  files = {name: f'model-0000{1 + (i > 5)}-of-00002.safetensors' for i, name in enumerate(names)}
  for file in set(files.values()):
    save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': files}))
  _, params = huggingface.read(folder).load()
  jax.tree.map(np.testing.assert_array_equal, params, parameters(small('llama2_70b')))


@pytest.mark.parametrize('part_bytes', [1, 20_000])
def test_a_large_model_is_written_in_parts(part_bytes, tmp_path):
  config = small('llama2_70b')
  saved(tmp_path)  # what stood there whole goes
  huggingface.save(tmp_path, config, parameters(config), part_bytes=part_bytes)
  parts = sorted(tmp_path.glob('model-*.safetensors'))
  assert parts[0].name == f'model-00001-of-{len(parts):05}.safetensors'
  assert not (tmp_path / 'model.safetensors').exists()
  held = [load_file(part) for part in parts]
  assert all(sum(t.nbytes for t in part.values()) <= part_bytes or len(part) == 1 for part in held) and len(parts) > 2
  index = json.loads((tmp_path / 'model.safetensors.index.json').read_text())
  assert index['metadata']['total_size'] == sum(t.nbytes for part in held for t in part.values())
  _, params = huggingface.read(tmp_path).load()
  jax.tree.map(np.testing.assert_array_equal, params, parameters(config))
  huggingface.save(tmp_path, config, parameters(config))
  jax.tree.map(np.testing.assert_array_equal, huggingface.read(tmp_path).load()[1], parameters(config))


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_written_in_half_precision(dtype, tmp_path):
  config = small('llama2_70b')
  huggingface.save(tmp_path, config, parameters(config), dtype=dtype)
  assert json.loads((tmp_path / 'config.json').read_text())['dtype'] == dtype
  _, params = huggingface.read(tmp_path).load()
  rounded = jax.tree.map(lambda x: x.astype(dtype).astype('float32'), dict(parameters(config)))
  jax.tree.map(np.testing.assert_array_equal, params, rounded)


def test_what_can_not_be_written_is_one_line(tmp_path):
  config = small('llama2_70b')
  large = jax.tree.map(lambda x: 1e6 * x, dict(parameters(config)))
  with pytest.raises(UserError, match='has numbers too large for float16; use float32'):
    huggingface.save(tmp_path / 'model', config, large, dtype='float16')
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='file/model can not be written'):
    huggingface.save(tmp_path / 'file' / 'model', config, parameters(config))


def test_all_that_a_tokenizer_is_read_from_comes_along():
  assert set(huggingface.ALONG) == set(tokenizers.FILES)


def test_names_without_their_first_part_and_old_buffers(tmp_path):
  """As the released GPT-2 has them."""
  folder = saved(tmp_path, 'gpt2_small')
  tensors = load_file(folder / 'model.safetensors')
  tensors = {name.removeprefix('transformer.'): tensor for name, tensor in tensors.items()}
  tensors['h.0.attn.bias'] = np.ones((1, 1, 4, 4), np.float32)
  tensors['lm_head.weight'] = tensors['wte.weight']
  save_file(tensors, folder / 'model.safetensors')
  _, params = huggingface.read(folder).load()
  jax.tree.map(np.testing.assert_array_equal, params, parameters(small('gpt2_small')))


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_half_precision_is_widened(tmp_path, dtype):
  folder = saved(tmp_path)
  tensors = {
    name: tensor.astype(jax.numpy.dtype(dtype)) for name, tensor in load_file(folder / 'model.safetensors').items()
  }
  save_file(tensors, folder / 'model.safetensors')
  _, params = huggingface.read(folder).load()
  rounded = jax.tree.map(lambda x: x.astype(dtype).astype('float32'), dict(parameters(small('llama2_70b'))))
  jax.tree.map(np.testing.assert_array_equal, params, rounded)


def test_parameters_are_born_on_their_devices(tmp_path):
  placement = Placement(make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2}))
  model, params = huggingface.read(saved(tmp_path)).load(place=placement.params)
  expected = placement.params(parameter_shapes(model))
  assert jax.tree.map(lambda x: x.sharding, params) == expected


def test_looped_layers_are_read_as_well(tmp_path):
  model, params = huggingface.read(saved(tmp_path)).load(stacked=False)
  assert not model.config.stacked
  jax.tree.map(np.testing.assert_array_equal, params, unstack(parameters(small('llama2_70b'))))


# ---- what is refused ------------------------------------------------------------------------------------------------


def changed(folder: pathlib.Path, change) -> None:
  tensors = load_file(folder / 'model.safetensors')
  change(tensors)
  save_file(tensors, folder / 'model.safetensors')


def reconfigured(folder: pathlib.Path, **fields) -> None:
  config = json.loads((folder / 'config.json').read_text())
  config |= fields
  config = {name: value for name, value in config.items() if value != 'absent'}
  (folder / 'config.json').write_text(json.dumps(config))


BROKEN = {
  'no config': (lambda f: (f / 'config.json').unlink(), 'has no config.json'),
  'no JSON': (lambda f: (f / 'config.json').write_text('{'), 'not the config of a model'),
  'a list': (lambda f: (f / 'config.json').write_text('[]'), 'not the config of a model'),
  'context': (lambda f: reconfigured(f, max_position_embeddings='long'), "max_position_embeddings = 'long'"),
  'no field': (lambda f: reconfigured(f, hidden_size='absent'), "has no 'hidden_size'"),
  'unknown type': (lambda f: reconfigured(f, model_type='lama'), "did you mean 'llama'?"),
  'activation': (lambda f: reconfigured(f, hidden_act='relu6'), "hidden_act = 'relu6' is not supported"),
  'scaling': (lambda f: reconfigured(f, rope_scaling={'rope_type': 'dynamic'}), "'dynamic' is not supported"),
  'biases': (lambda f: reconfigured(f, attention_bias=True), 'attention_bias and mlp_bias must be alike'),
  'heads': (lambda f: reconfigured(f, num_attention_heads=3), 'num_heads = 3 must be a multiple of'),
  'no weights': (lambda f: (f / 'model.safetensors').unlink(), 'has no model.safetensors; fetch it'),
  'a pickle': (
    lambda f: (f / 'model.safetensors').rename(f / 'pytorch_model.bin'),
    'pytorch_model.bin is a pickle, which can run code: convert it to safetensors',
  ),
  'missing': (lambda f: changed(f, lambda t: t.pop('model.norm.weight')), 'has no tensor model.norm.weight'),
  'left over': (
    lambda f: changed(f, lambda t: t.update({'model.extra': np.ones(2, np.float32)})), 'has model.extra, for which'
  ),
  'shape': (
    lambda f: changed(f, lambda t: t.update({'model.norm.weight': np.ones(2, np.float32)})),
    'tensor model.norm.weight: its shape is (2,), not (32,)',
  ),
  'absurdly many layers': (lambda f: reconfigured(f, num_hidden_layers=10**9), 'has no tensor model.layers.2.'),
  'absurdly wide': (lambda f: reconfigured(f, intermediate_size=10**12), 'tensor model.layers.0.mlp'),
  'fewer layers': (lambda f: reconfigured(f, num_hidden_layers=1), 'has model.layers.1'),
  'more layers': (lambda f: reconfigured(f, num_hidden_layers=3), 'has no tensor model.layers.2'),
  'untied': (lambda f: changed(f, lambda t: t.pop('lm_head.weight')), 'has no tensor lm_head.weight'),
  'index outside': (
    lambda f: (f / 'model.safetensors.index.json').write_text('{"weight_map": {"a": "../a.safetensors"}}'),
    'is not the name of a file in its folder',
  ),
  'index': (lambda f: (f / 'model.safetensors.index.json').write_text('{}'), 'no weight_map'),
}  # fmt: skip


@pytest.mark.parametrize('name', BROKEN)
def test_a_wrong_folder_is_one_line(name, tmp_path):
  folder = saved(tmp_path)
  break_it, message = BROKEN[name]
  break_it(folder)
  for stacked in (True, False):
    with pytest.raises(UserError, match=re.escape(message)) as raised:
      huggingface.read(folder).load(stacked=stacked)
  assert '\n' not in str(raised.value) and str(folder) in str(raised.value)


FOREIGN = {  # a kind of model as it is written, fields of its configuration, and what is said of them
  'one position': ('first', {'position_encoding_2d': False}, 'position_encoding_2d = False is not supported'),
  'tuned prefixes': ('first', {'pre_seq_len': 128}, 'pre_seq_len = 128 is not supported, only None'),
  'integers of the first': ('first', {'quantization_bit': 8}, 'quantization_bit = 8 is not supported, only 0'),
  'odd halves': ('first', {'hidden_size': 24}, 'position_encoding_2d of heads of 6 dimensions is not supported'),
  'relative places': ('blanks', {'relative_encoding': True}, 'relative_encoding = True is not supported, only False'),
  'no blanks': (
    'blanks', {'block_position_encoding': False}, 'block_position_encoding = False is not supported, only True'
  ),
  'integers': ('chatglm', {'quantization_bit': 4}, 'quantization_bit = 4 is not supported'),
  'norms': ('chatglm', {'rmsnorm': False}, 'rmsnorm = False is not supported'),
  'no groups': ('chatglm', {'multi_query_attention': 'absent'}, 'multi_query_attention = False is not supported'),
  'odd head': ('chatglm', {'kv_channels': 6}, 'embedding of 3 of the 6 dimensions of a head is not supported'),
  'odd part': ('glm', {'partial_rotary_factor': 0.4}, 'embedding of 3 of the 8 dimensions of a head is not supported'),
  'too large a part': ('glm', {'partial_rotary_factor': 1.25}, 'embedding of 10 of the 8 dimensions'),
  'more norms': ('glm', {'model_type': 'glm4'}, "model_type = 'glm4' is unknown"),
  'sequential': ('falcon', {'parallel_attn': False}, 'parallel_attn = False is not supported'),
}  # fmt: skip
OF_KIND = {
  'chatglm': ('chatglm2_6b', 'chatglm'), 'glm': ('chatglm2_6b', 'glm'), 'falcon': ('falcon_40b', 'falcon'),
  'first': ('chatglm_6b', 'chatglm'), 'blanks': ('glm_large', 'glm'),
}  # fmt: skip


@pytest.mark.parametrize('name', FOREIGN)
def test_a_model_of_other_parts_is_one_line(name, tmp_path):
  kind, fields, message = FOREIGN[name]
  folder = saved(tmp_path, *OF_KIND[kind])
  huggingface.read(folder)
  reconfigured(folder, **fields)
  with pytest.raises(UserError, match=re.escape(message)) as raised:
    huggingface.read(folder)
  assert '\n' not in str(raised.value) and str(folder) in str(raised.value)


def test_the_papers_alibi_is_not_written_as_falcons(tmp_path):
  with pytest.raises(UserError, match='can say this model'):
    saved(tmp_path, 'falcon_7b', **{**FALCON_RW, 'score_bias': Alibi()})


def test_old_tables_of_angles_are_no_parameters(tmp_path):
  folder = saved(tmp_path, 'chatglm2_6b', 'chatglm')
  changed(folder, lambda t: t.update({'transformer.rotary_pos_emb.inv_freq': np.ones(2, np.float32)}))
  _, params = huggingface.read(folder).load()
  jax.tree.map(np.testing.assert_array_equal, params, parameters(small('chatglm2_6b')))


def test_two_hundred_broken_files_are_one_line_each(tmp_path):
  """Cut anywhere, bits turned in the header, headers that claim to be huge: refused, or read as something whole."""
  folder = saved(tmp_path)
  path, rng = folder / 'model.safetensors', np.random.default_rng(0)
  whole = path.read_bytes()
  header = 8 + int.from_bytes(whole[:8], 'little')
  refused = 0
  for case in range(200):
    data = bytearray(whole)
    if case % 4 == 0:
      data = data[: rng.integers(0, len(data))]
    elif case % 4 == 1:
      data[rng.integers(0, header)] ^= 1 << rng.integers(0, 8)
    elif case % 4 == 2:
      data[:8] = int(rng.integers(header, 2**62)).to_bytes(8, 'little')
    else:
      start = rng.integers(8, header)
      data[start : start + 8] = rng.integers(32, 127, 8).astype(np.uint8).tobytes()
    path.write_bytes(data)
    try:
      huggingface.read(folder).load()
    except UserError as error:
      refused += 1
      assert '\n' not in str(error)
  assert refused > 180
