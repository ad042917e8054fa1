"""Medusa's heads as a run of experiments.medusa leaves them."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from experiments import language
from gpt_jax.decoding.tree import Tree, from_json
from gpt_jax.models.heads import Medusa, quantized_medusa
from gpt_jax.models.quantization import Int8
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.training.checkpoints import restore_params
from gpt_jax.training.workdir import read_json
from gpt_jax.types import Params, UserError


def medusa_of(config: Mapping[str, Any], base: TransformerConfig) -> Medusa:
  """The heads that the config of a run describes, for the model they belong to."""
  if config['num_heads'] < 1:
    raise UserError(f'config.num_heads = {config["num_heads"]} must be at least 1')
  return Medusa(dataclasses.replace(base.evaluated(), dtype=config['dtype']), config['num_heads'], config['shared'])


def load_medusa(workdir: str, base: TransformerConfig | None = None) -> tuple[Medusa, Params, Tree]:
  """The heads of a run, their parameters, and the tree grown from what they guess right.

  Their unembeddings are rounded to 8 bits: what they guess is checked, and a step waits for less memory.

  Args:
    workdir: of the run; the model that the heads belong to is the run's config.base.
    base: the config of that model, where it is loaded already; computation is in its dtype. None: in the run's.

  Raises:
    UserError: it is not the folder of such a run, the run is not finished, or its heads are of another model.
  """
  folder = pathlib.Path(workdir)
  if not (folder / 'config.json').exists():
    raise UserError(f'{workdir} is not the folder of a run: it has no config.json')
  config = read_json(folder / 'config.json').get('config', {})
  if 'num_heads' not in config:
    raise UserError(f'{workdir} is not a run of experiments.medusa')
  if not (folder / 'tree.json').exists():
    raise UserError(f'{workdir} has no tree.json: let the run that trains the heads end first')
  if base is None:
    medusa = medusa_of(config, language.weights(config['base']).config)
  else:
    medusa = medusa_of({**config, 'dtype': base.dtype}, base)
  shapes = jax.eval_shape(medusa.init, jax.random.key(0), jnp.zeros((1, medusa.config.model_dim)))
  if (folder / language.MODEL_FILE).exists():  # the heads are a branch of the model's own parameters
    params: Params = {'params': restore_params(folder, {'params': {'heads': shapes['params']}})['params']['heads']}
  else:
    params = restore_params(folder, shapes)
  return *quantized_medusa(medusa, jax.device_put(params), Int8()), from_json(read_json(folder / 'tree.json'))
