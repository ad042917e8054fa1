"""Every config is whole, and what it names exists."""

import dataclasses
import importlib
import pathlib

import pytest

from configs.distill import base as distill_base
from configs.medusa import base as medusa_base
from configs.pretrain import base, gpt3
from configs.reward import base as reward_base
from experiments import runs
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.training.fields import flat
from gpt_jax.training.optimizers import FIELDS
from gpt_jax.training.schedules import BatchRamp

BASES = {'pretrain': base, 'medusa': medusa_base, 'distill': distill_base, 'reward': reward_base}
NAMES = [
  (kind, path.stem)
  for kind, module in BASES.items()
  for path in sorted(pathlib.Path(module.__file__).parent.glob('*.py'))
  if path.stem not in ('__init__', 'base')
]


def config_of(kind: str, name: str) -> dict:
  return importlib.import_module(f'configs.{kind}.{name}').get_config().to_dict()


def test_the_base_has_every_field_of_a_model():
  config = base.get_config().to_dict()
  fields = {field.name for field in dataclasses.fields(TransformerConfig)}
  assert set(config['model']) - {'family'} == fields - {'quantization', 'lora'}, 'not wired in'
  assert config['optimizer'] == {**FIELDS, 'learning_rate': config['optimizer']['learning_rate']}


@pytest.mark.parametrize('kind', BASES)
def test_the_base_has_every_field_of_an_optimizer(kind):
  assert set(config_of(kind, 'base')['optimizer']) == set(FIELDS)


@pytest.mark.parametrize('size', gpt3.SIZES)
def test_gpt3(size):
  """Tokens of warm-up, decay and training (Brown et al. 2020, appendix B), as the batch grows; and it divides over the
  mesh from the first."""
  config = runs.check(gpt3.get_config(size).to_dict())
  context, optimizer = config['context'], config['optimizer']
  ramp = BatchRamp(config['batch_size'], context, **config['batch_ramp'])
  for steps, tokens in (
    (optimizer['warmup_steps'], 375e6),
    (optimizer['decay_steps'], 260e9),
    (config['num_steps'], 300e9),
  ):
    assert ramp.start(steps - 1) * context < tokens <= ramp.start(steps) * context
  assert 4e9 <= config['batch_ramp']['ramp_tokens'] <= 12e9
  assert all(ramp.rows(step) % config['mesh']['fsdp'] == 0 for step in range(0, config['num_steps'], 1000))
  assert (optimizer['b1'], optimizer['b2'], optimizer['eps'], optimizer['clip_norm']) == (0.9, 0.95, 1e-8, 1.0)
  assert (optimizer['weight_decay'], optimizer['end_fraction'], optimizer['schedule']) == (0.1, 0.1, 'cosine')


@pytest.mark.parametrize(('kind', 'name'), NAMES)
def test_config(kind, name):
  config = config_of(kind, name)
  assert flat(config).keys() == flat(config_of(kind, 'base')).keys(), 'a field that no base has'
  if kind == 'pretrain' and name != 'tiny':  # it is given its source
    runs.check(config)
  assert config['batch_size'] % config['microbatches'] == 0
  path = f'configs/{kind}/{name}.py'
  text = (pathlib.Path(__file__).parents[1] / path).read_text()
  assert f'python -m experiments.{kind} --config={path}' in text, 'no command that runs it'
