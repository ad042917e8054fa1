"""Teaches a language model by demonstrations: to answer as the answers it is shown.

python -m experiments.instruct --config=configs/instruct/snippets.py --workdir=DIR [--config.FIELD=VALUE ...]
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
from ml_collections import config_flags

from experiments import command, demonstrations, language, reading, runs
from gpt_jax.data import mixture
from gpt_jax.evaluation.perplexity import evaluate
from gpt_jax.models.flops import training_flops
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.lora import adapted
from gpt_jax.objectives.likelihood import next_token_loss
from gpt_jax.sharding import Placement, make_mesh
from gpt_jax.training.run import run
from gpt_jax.types import Params

CONFIG = config_flags.DEFINE_config_file('config', None, 'a file of configs/instruct')
WORKDIR = flags.DEFINE_string('workdir', None, 'the folder of the run: what it writes, and where it goes on from')


def train(config: Mapping[str, Any], workdir: str) -> None:
  """Trains as `config` says, in `workdir`, from where an earlier run of the same config stopped."""
  lora = demonstrations.checked(config)
  found = language.weights(config['init_from'])
  cfg = dataclasses.replace(found.changed(config['model']), lora=lora)
  runs.check_context(cfg, config['context'])
  train, weights = demonstrations.training_rows(config, found)
  validation = demonstrations.answers(config, found, 'validation')
  num_steps = max(round(config['epochs'] * len(train[0]) / (config['batch_size'] * weights[0])), 1)
  config = {**config, 'num_steps': num_steps, 'begin': found.begin}
  if lora is not None:
    config['optimizer'] = {**config['optimizer'], 'rates': (*config['optimizer']['rates'], *demonstrations.LORA_ALONE)}
  model, evaluated = LanguageModel(cfg), LanguageModel(cfg.evaluated())
  by_reward = config['checkpoint'] == 'reward'
  evaluations = {'held_out': demonstrations.rewarded(config, found, evaluated)} if by_reward else {}
  runs.claim(workdir, config, found.tokenizer, cfg)
  placement = Placement(make_mesh(config['mesh']))
  runs.say_kernels(cfg, config['batch_size'], config['context'])
  init = lambda key: evaluated.init(key, jnp.zeros((1, 1), int))
  batches = mixture.prefetched(mixture.batches(train, weights, config['batch_size'], config['seed'], **placement.share))
  measured = next_token_loss(evaluated, chunk=config['loss']['chunk'] or None)

  def first(like: Params) -> Params:
    params = found.read(dataclasses.replace(cfg, lora=None), placement.params)
    if lora is None:
      return params
    begun = lambda params: adapted(params, init(jax.random.key(config['seed'])))
    return jax.jit(begun, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, like))(params)

  def held_out(params: Params) -> dict[str, float]:
    return evaluate(measured, params, reading.placed([validation], config['eval_batch_size'], placement))

  state = run(
    workdir,
    config,
    init=init,
    first=first,
    loss_fn=next_token_loss(model, chunk=config['loss']['chunk'] or None),
    source=lambda index, state: [batches(index)],
    placement=placement,
    tokens_per_step=lambda index: config['batch_size'] * config['context'],
    flops_per_token=training_flops(cfg, config['context']),
    evaluations={'validation': held_out, **evaluations},
    best=demonstrations.CHECKPOINTS[config['checkpoint']],
    describe_batch=lambda index: f'batch {index} of seed {config["seed"]}',
    **command.training(),
  )
  if state is not None:
    print(f'Done: {workdir} has result.json and plots. To see what it learned:')
    print(f'  python -m experiments.generate --model={workdir} --prompt="Once"')


def main(_: Any) -> None:
  train(command.required(CONFIG).to_dict(), command.required(WORKDIR))


if __name__ == '__main__':
  command.run(main)
