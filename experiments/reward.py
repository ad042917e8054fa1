"""Trains a reward model: what people would think of a text, from how they ranked others.

python -m experiments.reward --config=configs/reward/vader.py --workdir=DIR [--config.FIELD=VALUE ...]
"""

from collections.abc import Mapping
import pathlib
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
from ml_collections import config_flags
import pandas as pd

from experiments import command, language, preferences, reading, runs
from experiments.heads import NORMALIZED, REWARD_FILE
from gpt_jax.data import mixture
from gpt_jax.evaluation.figures import calibration
from gpt_jax.evaluation.perplexity import evaluate, once
from gpt_jax.models.flops import reward_flops
from gpt_jax.models.heads import RewardModel, reward_params
from gpt_jax.models.parts import to_config
from gpt_jax.names import choose
from gpt_jax.objectives.preference import ranking_loss, ranking_metrics
from gpt_jax.sharding import Placement, make_mesh
from gpt_jax.training.plots import save
from gpt_jax.training.run import run
from gpt_jax.training.workdir import prepare, write_json
from gpt_jax.types import Params

CONFIG = config_flags.DEFINE_config_file('config', None, 'a file of configs/reward')
WORKDIR = flags.DEFINE_string('workdir', None, 'the folder of the run: what it writes, and where it goes on from')


def train(config: Mapping[str, Any], workdir: str) -> None:
  """Trains as `config` says, in `workdir`, from where an earlier run of the same config stopped."""
  preferences.check(config)
  normalized = choose('config.normalized', config['normalized'], NORMALIZED)
  found = language.weights(config['init_from'])
  cfg = found.changed(config['model'])
  runs.check_context(cfg, config['context'])
  train, validation = (preferences.ranked(config, found, split) for split in ('train', 'validation'))
  num_steps = max(round(config['epochs'] * len(train) / config['batch_size']), 1)
  config = {**config, 'num_steps': num_steps}
  prepare(workdir, config)
  runs.keep_tokenizer(workdir, found.tokenizer)
  placement = Placement(make_mesh(config['mesh']))
  runs.say_kernels(cfg, config['batch_size'] * train.responses, config['context'])
  model, evaluated = RewardModel(cfg), RewardModel(cfg.evaluated())
  init = lambda key: evaluated.init(key, jnp.zeros((1, 1), int))
  batches = mixture.prefetched(mixture.batches([train], [1.0], config['batch_size'], config['seed'], **placement.share))
  measured = ranking_metrics(evaluated)

  def first(like: Params) -> Params:
    begun = lambda params: reward_params(params, init(jax.random.key(config['seed'])))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jax.jit(begun, out_shardings=shardings)(found.read(cfg, placement.params))

  @once
  def measure(params: Params) -> dict[str, float]:
    return evaluate(measured, params, reading.placed([validation], config['eval_batch_size'], placement))

  def summary(params: Params) -> dict[str, Any]:
    gain, offset = normalized(measure(params))
    scale = {'gain': gain, 'offset': offset}
    write_json(pathlib.Path(workdir) / REWARD_FILE, {'model': to_config(cfg), **scale})
    table = bins(measure(params))
    save(calibration(table), pathlib.Path(workdir) / 'plots' / 'calibration.png')
    return {**scale, 'calibration': table.to_dict('list')}

  state = run(
    workdir,
    config,
    init=init,
    first=first,
    loss_fn=ranking_loss(model, **config['loss']),
    source=lambda index, state: [batches(index)],
    placement=placement,
    tokens_per_step=lambda index: config['batch_size'] * train.responses * config['context'],
    flops_per_token=reward_flops(cfg, config['context']),
    evaluations={'validation': lambda params: {name: measure(params)[name] for name in ('loss', 'accuracy')}},
    summary=summary,
    describe_batch=lambda index: f'batch {index} of seed {config["seed"]}',
    **command.training(),
  )
  if state is not None:
    print(f'Done: {workdir} has result.json and plots.')


def bins(values: Mapping[str, float]) -> pd.DataFrame:
  """The calibration of `ranking_metrics`, a row a bin that something fell in."""
  numbers = [name.removeprefix('observed_') for name in values if name.startswith('observed_')]
  columns = ('predicted', 'observed', 'share')
  return pd.DataFrame([[values[f'{column}_{k}'] for column in columns] for k in numbers], columns=columns)


def main(_: Any) -> None:
  train(command.required(CONFIG).to_dict(), command.required(WORKDIR))


if __name__ == '__main__':
  command.run(main)
