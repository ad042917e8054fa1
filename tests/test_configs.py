"""Every config is whole, and what it names exists."""

import dataclasses
import importlib
import pathlib

import pytest

from configs.pretrain import base
from experiments import language
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.training.fields import flat
from gpt_jax.training.optimizers import FIELDS

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
  if name != 'tiny':  # it is given its source
    language.check(config)
  assert config['batch_size'] % config['microbatches'] == 0
  text = (FOLDER / f'{name}.py').read_text()
  assert f'--config=configs/pretrain/{name}.py' in text, 'no command that runs it'
