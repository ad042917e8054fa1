"""Heads as runs leave them: Medusa's, and those of reward models."""

from collections.abc import Callable, Mapping
import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Int
import numpy as np

from experiments import language
from gpt_jax.decoding.drafts import MedusaDraft
from gpt_jax.decoding.tree import TOPK, Tree, from_json
from gpt_jax.interop.tensors import Place
from gpt_jax.models.heads import Medusa, RewardModel, quantized_medusa
from gpt_jax.models.parts import from_config
from gpt_jax.models.quantization import Int8
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.training.checkpoints import restore_params
from gpt_jax.training.workdir import read_json
from gpt_jax.types import Params, UserError, shapes_at


def medusa_of(config: Mapping[str, Any], base: TransformerConfig) -> Medusa:
  """The heads that the config of a run describes, for the model they belong to."""
  if config['num_heads'] < 1:
    raise UserError(f'config.num_heads = {config["num_heads"]} must be at least 1')
  size, whole = config['draft_vocab_size'], base.vocab_size
  if size and not TOPK <= size <= whole:
    raise UserError(f'config.draft_vocab_size = {size} must be from {TOPK} to {whole}, or 0: the whole vocabulary')
  computed = dataclasses.replace(base.evaluated(), dtype=config['dtype'])
  return Medusa(computed, config['num_heads'], config['shared'], draft_vocab_size=size or None)


REWARD_FILE = 'reward.json'
"""In the folder of a finished run of experiments.reward: its model, the gain of its rewards, and what is added then."""

NORMALIZED: Mapping[str, Callable[[Mapping[str, float]], tuple[float, float]]] = {
  'best': lambda measured: (1.0, -measured['best_reward']),
  'all': lambda measured: _standard(measured['mean_reward'], measured['mean_square_reward']),
}
"""Gain and offset of what `ranking_metrics` measured: the best of the rankings have mean 0, as demonstrations in
InstructGPT (section 3.5); or all texts mean 0 and deviation 1 (Ziegler et al. 2019, section 2.1)."""


def _standard(mean: float, mean_square: float) -> tuple[float, float]:
  gain = 1 / max(math.sqrt(max(mean_square - mean**2, 0.0)), 1e-8)
  return gain, -mean * gain


def load_reward(workdir: str) -> tuple[RewardModel, Params]:
  """The reward model of a run, its rewards normalised as the run has them.

  Raises:
    UserError: it is not the folder of such a run, or the run is not finished.
  """
  folder = pathlib.Path(workdir)
  if not (folder / REWARD_FILE).exists():
    raise UserError(f'{workdir} has no {REWARD_FILE}: name a finished run of experiments.reward')
  said = read_json(folder / REWARD_FILE)
  model = RewardModel(from_config(said['model']).evaluated())
  params = restore_params(folder, jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
  inner = params['params']
  gain = said.get('gain', 1.0)  # runs of before it was had none
  scaled = {
    'reward_kernel': inner['reward_kernel'] * gain, 'reward_bias': inner['reward_bias'] * gain + said['offset'],
  }  # fmt: skip
  return model, jax.device_put({'params': {**inner, **scaled}})


def heads_config(workdir: str) -> Mapping[str, Any]:
  """The config of a run that left Medusa's heads.

  Raises:
    UserError: it is not the folder of such a run.
  """
  path = pathlib.Path(workdir) / 'config.json'
  if not path.exists():
    raise UserError(f'{workdir} is not the folder of a run: it has no config.json')
  config = read_json(path).get('config', {})
  if 'num_heads' not in config:
    raise UserError(f'{workdir} is not a run of experiments.medusa')
  return {'draft_vocab_size': 0, **config}  # runs of before it was had none


TREE_FILE = 'tree.json'
"""In the folder of a finished run of experiments.medusa: the tree of guesses and, where not all, their vocabulary."""


def load_medusa(workdir: str, base: TransformerConfig | None = None, place: Place | None = None) -> MedusaDraft:
  """The heads of a run as a draft, in the tree grown from what they guess right.

  Their unembeddings are rounded to 8 bits: what they guess is checked, and a step waits for less memory.

  Args:
    workdir: of the run; the model that the heads belong to is the run's config.base.
    base: the config of that model, where it is loaded already; computation is in its dtype. None: in the run's.
    place: gives the sharding of each parameter, of their shapes; None: the default device.

  Raises:
    UserError: it is not the folder of such a run, the run is not finished, or its heads are of another model.
  """
  folder, config = pathlib.Path(workdir), heads_config(workdir)
  tree, vocabulary = read_tree(workdir)
  if base is None:
    medusa = medusa_of(config, language.weights(config['base']).config)
  else:
    medusa = medusa_of({**config, 'dtype': base.dtype}, base)
  shapes = jax.eval_shape(medusa.init, jax.random.key(0), jnp.zeros((1, medusa.config.model_dim)))
  shapes = shapes if place is None else shapes_at(shapes, place(shapes))
  if (folder / language.MODEL_FILE).exists():  # the heads are a branch of the model's own parameters
    params: Params = {'params': restore_params(folder, {'params': {'heads': shapes['params']}})['params']['heads']}
  else:
    params = restore_params(folder, shapes)
  medusa, params = quantized_medusa(medusa, jax.device_put(params), Int8())
  return MedusaDraft(params, medusa, tree, None if vocabulary is None else jnp.asarray(vocabulary))


def read_tree(workdir: str) -> tuple[Tree, Int[np.ndarray, 'G'] | None]:
  """The tree of a run's heads, and the tokens that they tell apart, in order; None: all.

  Raises:
    UserError: the run is not finished.
  """
  path = pathlib.Path(workdir) / TREE_FILE
  if not path.exists():
    raise UserError(f'{workdir} has no {TREE_FILE}: let the run that trains the heads end first')
  said = read_json(path)
  return from_json(said), np.array(said['vocabulary'], np.int32) if 'vocabulary' in said else None
