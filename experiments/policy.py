"""Teaches a language model by rewards for what it writes: PPO, PPO-ptx, GRPO, RLOO.

python -m experiments.policy --config=configs/policy/positive.py --workdir=DIR [--config.FIELD=VALUE ...]
"""

from collections.abc import Mapping
import dataclasses
import functools
import pathlib
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
from ml_collections import config_flags

from experiments import actors, command, language, prompts, reading, rewards, runs, samples
from gpt_jax.data import mixture, tokenizers
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.objectives.likelihood import next_token_loss
from gpt_jax.objectives.policy import policy_loss, with_pretraining
from gpt_jax.rollouts import Gae, Kl, Rollouts
from gpt_jax.sharding import Placement, make_mesh
from gpt_jax.training.run import run
from gpt_jax.training.workdir import read_json
from gpt_jax.types import LossFn, Params

CONFIG = config_flags.DEFINE_config_file('config', None, 'a file of configs/policy')
WORKDIR = flags.DEFINE_string('workdir', None, 'the folder of the run: what it writes, and where it goes on from')


def train(config: Mapping[str, Any], workdir: str) -> None:
  """Trains as `config` says, in `workdir`, from where an earlier run of the same config stopped."""
  config, estimator = actors.check(config), actors.estimator_of(config)
  found = language.weights(config['init_from'])
  cfg = dataclasses.replace(found.changed(config['model']).evaluated(), lora=None)
  rollout = config['rollout']
  length = actors.length(config)
  runs.check_context(cfg, length, 'config.data.prompt_tokens + config.rollout.max_new_tokens')
  steps = config['epochs'] * config['minibatches']
  placement = Placement(make_mesh(config['mesh']))
  runs.say_kernels(cfg, rollout['prompts'] * rollout['num_samples'], length)
  asked = {split: prompts.of_split(config['data'], found, split) for split in ('train', 'validation')}
  every_record = {tuple(ids): record for of_split in asked.values() for ids, record in of_split}
  size = rollout['prompts'] * rollout['num_samples'] // config['minibatches']
  if config['reward']['function']:
    reward = rewards.of_function(config['reward']['function'], 'config.reward.function', found.tokenizer, every_record)
  else:
    reward = rewards.of_model(config['reward']['model'], found.tokenizer, length, size)
  writing = prompts.writing(rollout, found.tokenizer)
  folder = runs.claim(workdir, config, found.tokenizer, cfg)
  reference = found.read(cfg, placement.params)
  model, first = actors.actor(config, cfg, reference, estimator)

  def init(key: jax.Array) -> Params:
    method = 'features_and_values' if isinstance(estimator, Gae) else '__call__'
    return model.init(key, jnp.zeros((1, 1), int), method=method)

  def placed(like: Params) -> Params:
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jax.jit(first, out_shardings=shardings)(reference, init(jax.random.key(config['seed'])))

  loss = {**config['loss'], 'chunk': config['loss']['chunk'] or None}
  loss_fn = policy_loss(model, **loss, temperature=rollout['temperature'])
  text = None
  if config['pretraining']['coefficient']:
    text, loss_fn = pretraining(config, found, model, loss_fn, size)
  source = Rollouts(
    model=model,
    reference=reference,
    prompts=prompts.in_turn(asked['train'], rollout['prompts'], config['seed']),
    num_prompts=rollout['prompts'],
    prompt_length=config['data']['prompt_tokens'],
    writing=writing,
    reward=reward,
    estimator=estimator,
    kl=Kl(**config['kl']),
    minibatches=config['minibatches'],
    epochs=config['epochs'],
    seed=config['seed'],
    history=folder / 'rollouts.jsonl',
    decode=functools.partial(tokenizers.decode, found.tokenizer),
    missing_end_reward=rollout['missing_end_reward'],
    whiten_scores=config['reward']['whiten'],
    pretraining=text,
    chunk=loss['chunk'],
  )
  evaluations = {'held_out': samples.judged(config, found, source, asked['validation'], every_record, folder)}
  if config['pretraining']['source']:
    evaluations['pretraining'] = held_out_text(config, found, cfg, placement)

  def summary(params: Params) -> dict[str, Any]:
    source.settle(params)
    found: dict[str, Any] = {}
    if config['reward']['model']:  # how far it can be trusted
      result = read_json(pathlib.Path(config['reward']['model']) / 'result.json')
      found['reward_pair_accuracy'] = result['validation_accuracy']
    total = sum(source.seconds.values()) or 1.0
    print('Time of a rollout and its updates: ' + ', '.join(f'{k} {v / total:.0%}' for k, v in source.seconds.items()))
    return {**found, 'speed': {f'{name}_seconds': seconds for name, seconds in source.seconds.items()}}

  state = run(
    workdir,
    config,
    init=init,
    first=placed,
    loss_fn=loss_fn,
    source=source,
    placement=placement,
    tokens_per_step=lambda index: size * length,
    flops_per_token=actors.flops_per_token(cfg, length, estimator),
    evaluations=evaluations,
    summary=summary,
    describe_batch=lambda index: f'of rollout {index // steps}',
    **command.training(),
  )
  if state is not None:
    print(f'Done: {workdir} has result.json, rollouts.jsonl, samples.jsonl and plots. To see what it learned:')
    print(f'  python -m experiments.generate --model={workdir} --prompt="The"')


def pretraining(
  config: Mapping[str, Any], found: language.Weights, model: LanguageModel, policy: LossFn, size: int
) -> tuple[mixture.Source, LossFn]:
  """The text of PPO-ptx, and the loss that has it besides."""
  how = config['pretraining']
  rows = reading.rows(reading.beside(config), found.tokenizer, 'train', drop_remainder=True, context=how['context'])
  source = mixture.prefetched(
    mixture.batches(rows, [1.0] * len(rows), max(round(how['per_episode'] * size), 1), config['seed'])
  )
  nll = next_token_loss(model, chunk=config['loss']['chunk'] or None)
  return source, with_pretraining(policy, nll, how['coefficient'])


def held_out_text(
  config: Mapping[str, Any], found: language.Weights, cfg: TransformerConfig, placement: Placement
) -> reading.Evaluation:
  """The loss on text as in pretraining that is learned from nowhere: what alignment costs."""
  how = config['pretraining']
  number = how['eval_rows'] * how['context']
  rows = reading.rows(
    reading.beside(config),
    found.tokenizer,
    'validation',
    drop_remainder=False,
    num_tokens=number,
    context=how['context'],
  )
  return reading.validation(LanguageModel(cfg), rows, config['eval_batch_size'], placement)


def main(_: Any) -> None:
  train(command.required(CONFIG).to_dict(), command.required(WORKDIR))


if __name__ == '__main__':
  command.run(main)
