"""Quantised on load, and folders of quantised kernels: the same arrays either way, and what is refused."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpt_jax.interop import gguf, huggingface
from gpt_jax.models.heads import LanguageModel, parameter_shapes
from gpt_jax.models.quantization import Int4, Int8, quantize
from gpt_jax.models.transformer import unstack
from gpt_jax.sharding import Placement, make_mesh
from gpt_jax.types import UserError
from tests.interop.test_huggingface import saved
from tests.models.small import parameters

KINDS = {'int8': Int8(), 'int8 by group': Int8(16), 'int4': Int4(16)}


def same(got, want) -> None:
  assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(lambda x: x.dtype, want)
  jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A model in float32, and it again with int8 kernels."""
  root = tmp_path_factory.mktemp('models')
  model, params = huggingface.read(saved(root / 'plain', 'falcon_7b')).load(quantization=Int8(), stacked=False)
  huggingface.save(root / 'int8', model.config, params, context=16)
  return root


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
  'family', [*(pytest.param(name, marks=pytest.mark.slow) for name in ('gpt2_small', 'falcon_7b')), 'chatglm2_6b']
)
def test_on_load_and_written_it_is_the_same(family, kind, tmp_path):
  """Stacked or not on either side."""
  source = huggingface.read(saved(tmp_path / 'plain', family))
  config = dataclasses.replace(source.config, quantization=KINDS[kind])
  want = quantize(parameters(source.config), KINDS[kind], parameter_shapes(LanguageModel(config)))
  model, params = source.load(quantization=KINDS[kind])
  same(params, want)
  huggingface.save(tmp_path / 'small', model.config, params)
  again = huggingface.read(tmp_path / 'small')
  assert again.config.quantization == KINDS[kind]
  same(again.load()[1], want)
  model, apart = again.load(stacked=False)
  same(apart, unstack(want))
  huggingface.save(tmp_path / 'apart', model.config, apart, dtype='float16')
  up = lambda params: params['params']['transformer']['blocks']['block_0']['mlp']['up']['kernel']
  same(up(huggingface.read(tmp_path / 'apart').load()[1]), up(want))


def test_each_array_is_put_where_it_belongs(folder):
  mesh = Placement(make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2}))
  for name, quantization in (('plain', Int8()), ('int8', Int8())):
    _, params = huggingface.read(folder / name).load(place=mesh.params, quantization=quantization)
    jax.tree.map(lambda x, sharding: x.sharding == sharding or pytest.fail(str(x)), params, mesh.params(params))


def test_another_quantisation_than_the_stored_is_refused(folder):
  source = huggingface.read(folder / 'int8')
  assert source.load(quantization=Int8())[0].config.quantization == Int8()
  for wanted in (Int4(16), Int8(16), None):
    with pytest.raises(UserError, match='is quantised already, as Int8'):
      source.load(quantization=wanted)


def test_gguf_has_no_place_for_it(folder, tmp_path):
  model, params = huggingface.read(folder / 'int8').load()
  with pytest.raises(UserError, match='our quantisation has no place in GGUF; write float16'):
    gguf.save(tmp_path / 'x.gguf', model.config, params)


BROKEN = {
  'another kind': ({'quantization': {'name': 'int9'}}, "quantization: name = 'int9' is unknown; did you mean 'int8'?"),
  'a group of none': ({'quantization': {'name': 'int8', 'group': 0}}, 'not the config of a model (group = 0'),
  'no kind': ({'quantization': None}, 'not the config of a model'),
  'no model': ({'model': {}}, "model_type = 'None' is unknown"),
  'another group': ({'quantization': {'name': 'int8', 'group': 16}}, 'its shape is'),
  'four bits': (
    {'quantization': {'name': 'int4', 'group': 16}},
    'kernel.multiples: a file is missing',
  ),
}


@pytest.mark.parametrize('name', BROKEN)
def test_broken_configs_are_one_line(name, folder, tmp_path):
  changed, message = BROKEN[name]
  config = json.loads((folder / 'int8' / 'config.json').read_text())
  (tmp_path / 'config.json').write_text(json.dumps({**config, **changed}))
  (tmp_path / 'model.safetensors').symlink_to(folder / 'int8' / 'model.safetensors')
  with pytest.raises(UserError, match=re.escape(message)) as error:
    huggingface.read(tmp_path).load()
  assert '\n' not in str(error.value)


def test_integers_of_another_width_are_refused(folder, tmp_path):
  tensors = load_file(folder / 'int8' / 'model.safetensors')
  name = 'transformer.blocks.0.mlp.up.kernel.values'
  assert tensors[name].dtype == np.int8
  save_file({**tensors, name: tensors[name].astype(np.float32)}, tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_bytes((folder / 'int8' / 'config.json').read_bytes())
  with pytest.raises(UserError, match=f'tensor {re.escape(name)}: its dtype is float32, not int8'):
    huggingface.read(tmp_path).load()
