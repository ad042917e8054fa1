"""Teaches a language model by preferences themselves, without a reward model: DPO and IPO.

python -m experiments.dpo --config=configs/dpo/positive.py --workdir=DIR [--config.FIELD=VALUE ...]
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
from ml_collections import config_flags

from experiments import command, language, preferences, reading, runs
from gpt_jax.data import mixture
from gpt_jax.evaluation.perplexity import evaluate
from gpt_jax.models.flops import training_flops
from gpt_jax.models.heads import LanguageModel
from gpt_jax.names import choose
from gpt_jax.objectives.preference import dpo_loss, log_likelihoods
from gpt_jax.sharding import Placement, make_mesh
from gpt_jax.training.run import run
from gpt_jax.types import Batch, Params, UserError

CONFIG = config_flags.DEFINE_config_file('config', None, 'a file of configs/dpo')
WORKDIR = flags.DEFINE_string('workdir', None, 'the folder of the run: what it writes, and where it goes on from')

FORMS = ('sigmoid', 'ipo')


def train(config: Mapping[str, Any], workdir: str) -> None:
  """Trains as `config` says, in `workdir`, from where an earlier run of the same config stopped."""
  loss = {**config['loss'], 'chunk': config['loss']['chunk'] or None}
  choose('config.loss.form', loss['form'], dict.fromkeys(FORMS))
  if loss['beta'] <= 0 or not 0 <= loss['label_smoothing'] < 0.5:
    raise UserError('config.loss: beta must be above 0, and label_smoothing from 0 up to 0.5')
  preferences.check(config)
  found = language.weights(config['init_from'])
  cfg = dataclasses.replace(found.changed(config['model']).evaluated(), lora=None)
  runs.check_context(cfg, config['context'])
  train, validation = (preferences.ranked(config, found, split) for split in ('train', 'validation'))
  num_steps = max(round(config['epochs'] * len(train) / config['batch_size']), 1)
  config = {**config, 'num_steps': num_steps, 'begin': found.begin}
  runs.claim(workdir, config, found.tokenizer, cfg)
  placement = Placement(make_mesh(config['mesh']))
  runs.say_kernels(cfg, config['batch_size'] * train.responses, config['context'])
  model, reference = LanguageModel(cfg), found.read(cfg, placement.params)
  says = jax.jit(functools.partial(log_likelihoods, model, chunk=loss['chunk']))
  batches = mixture.prefetched(mixture.batches([train], [1.0], config['batch_size'], config['seed'], **placement.share))
  loss_fn = dpo_loss(model, **loss)

  def with_reference(batch: Batch) -> Batch:
    batch = placement.batch(batch)
    return {**batch, 'reference_logprobs': says(reference, batch)}

  def held_out(params: Params) -> dict[str, float]:
    rows = reading.placed([validation], config['eval_batch_size'], placement)
    return evaluate(loss_fn, params, map(with_reference, rows))

  readings = config['context'] * train.responses
  state = run(
    workdir,
    config,
    init=lambda key: model.init(key, jnp.zeros((1, 1), int)),
    first=lambda like: jax.tree.map(jnp.copy, reference),
    loss_fn=loss_fn,
    source=lambda index, state: [with_reference(batches(index))],
    placement=placement,
    tokens_per_step=lambda index: config['batch_size'] * readings,
    flops_per_token=training_flops(cfg, config['context']) * 4 / 3,
    evaluations={'validation': held_out},
    describe_batch=lambda index: f'batch {index} of seed {config["seed"]}',
    **command.training(),
  )
  if state is not None:
    print(f'Done: {workdir} has result.json and plots. To see what it learned:')
    print(f'  python -m experiments.generate --model={workdir} --prompt="The"')


def main(_: Any) -> None:
  train(command.required(CONFIG).to_dict(), command.required(WORKDIR))


if __name__ == '__main__':
  command.run(main)
