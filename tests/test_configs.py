"""Every config is whole, and what it names exists."""

import dataclasses
import importlib
import pathlib

import pytest

from configs.pretrain import base
from gpt_jax.models.parts import from_config
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.training.fields import flat
from gpt_jax.training.optimizers import FIELDS, make_optimizer
from gpt_jax.training.schedules import BatchRamp

FOLDER = pathlib.Path(base.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob('*.py') if path.stem not in ('__init__', 'base'))


def config_of(name: str) -> dict:
  return importlib.import_module(f'configs.pretrain.{name}').get_config().to_dict()


def test_the_base_has_every_field_of_a_model_and_an_optimizer():
  config = base.get_config().to_dict()
  assert set(config['model']) - {'family'} == {field.name for field in dataclasses.fields(TransformerConfig)}
  assert config['optimizer'] == {**FIELDS, 'learning_rate': config['optimizer']['learning_rate']}


@pytest.mark.parametrize('name', NAMES)
def test_config(name):
  config = config_of(name)
  assert flat(config).keys() == flat(base.get_config().to_dict()).keys(), 'a field that no base has'
  model = from_config({**config['model'], 'vocab_size': 64})
  assert model.positions is None or model.positions.length >= config['context']
  make_optimizer(config['optimizer'], config['num_steps'])
  BatchRamp(config['batch_size'], config['context'], **config['batch_ramp'])
  assert config['batch_size'] % config['microbatches'] == 0
  text = (FOLDER / f'{name}.py').read_text()
  assert f'--config=configs/pretrain/{name}.py' in text, 'no command that runs it'
