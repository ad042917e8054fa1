"""The policy that a config describes, with its critic; what is wrong with the config, and what a run costs."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments import language, reading
from experiments.heads import load_reward
from gpt_jax.models.flops import training_flops
from gpt_jax.models.heads import ActorCritic, LanguageModel
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.names import choose
from gpt_jax.rollouts import Estimator, Gae, Grpo, Rloo
from gpt_jax.training.optimizers import make_optimizer
from gpt_jax.types import Params, UserError

ESTIMATORS: Mapping[str, Callable[[Mapping[str, Any]], Estimator]] = {
  'gae': lambda config: Gae(**config['gae']),
  'grpo': lambda config: Grpo(config['rollout']['num_samples'], **config['grpo']),
  'rloo': lambda config: Rloo(config['rollout']['num_samples']),
}
"""Of what tokens were worth, by name."""

CRITICS = ('own', 'shared')
"""Whether values come from a Transformer of their own, which begins as the reward model, or from the policy's."""


def check(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config as a run keeps it: with the steps that its rollouts are, and what stands before every text.

  Raises:
    UserError: what is wrong in the config, as far as it can be known before any data is read.
  """
  if not config['init_from']:
    raise UserError(f'config.init_from is missing: name {language.MODEL}')
  if bool(config['reward']['model']) == bool(config['reward']['function']):
    raise UserError('config.reward takes either a model, a run of experiments.reward, or a function')
  reading.sources_of(config['data'])
  rollout = config['rollout']
  counts = {name: config[name] for name in ('num_rollouts', 'epochs', 'minibatches')}
  counts |= {f'rollout.{name}': rollout[name] for name in ('prompts', 'num_samples', 'max_new_tokens')}
  counts['data.prompt_tokens'] = config['data']['prompt_tokens']
  for name, count in counts.items():
    if count < 1:
      raise UserError(f'config.{name} = {count} must be at least 1')
  episodes = rollout['prompts'] * rollout['num_samples']
  if episodes % config['minibatches']:
    raise UserError(
      f'config.minibatches = {config["minibatches"]} does not divide the {episodes} responses of a rollout'
    )
  if config['pretraining']['coefficient']:
    reading.beside(config)
  if rollout['temperature'] <= 0:
    raise UserError(f'config.rollout.temperature = {rollout["temperature"]} must be above 0')
  choose('config.critic', config['critic'], dict.fromkeys(CRITICS))
  estimator = estimator_of(config)
  if not isinstance(estimator, Gae) and rollout['num_samples'] < 2:
    raise UserError(
      f'config.estimator = {config["estimator"]} compares responses: config.rollout.num_samples must be 2 or more'
    )
  make_optimizer(config['optimizer'], 1)
  if jax.process_count() > 1:
    raise UserError('rollouts are written by one process: start one')
  steps = config['epochs'] * config['minibatches']
  every = {name: config[name] * steps for name in ('eval_every', 'checkpoint_every')}
  begin = language.weights(config['init_from']).begin
  return {**config, **every, 'num_steps': config['num_rollouts'] * steps, 'begin': begin}


def estimator_of(config: Mapping[str, Any]) -> Estimator:
  """How it is estimated what tokens were worth."""
  return choose('config.estimator', config['estimator'], ESTIMATORS)(config)


def length(config: Mapping[str, Any]) -> int:
  """Tokens of a prompt and its response at most."""
  found: int = config['data']['prompt_tokens'] + config['rollout']['max_new_tokens']
  return found


def flops_per_token(cfg: TransformerConfig, length: int, estimator: Estimator) -> float:
  """The arithmetic of an update, the critic's counted as the policy's; that of rollouts is not."""
  return training_flops(cfg, length) * (2 if isinstance(estimator, Gae) else 1)


def flops(config: Mapping[str, Any]) -> float:
  """The arithmetic of all updates of a run."""
  cfg, rollout = language.weights(config['init_from']).config, config['rollout']
  tokens = rollout['prompts'] * rollout['num_samples'] * length(config)
  each = flops_per_token(cfg, length(config), estimator_of(config))
  return each * tokens * config['epochs'] * config['num_rollouts']


def actor(
  config: Mapping[str, Any], cfg: TransformerConfig, reference: Params, estimator: Estimator
) -> tuple[LanguageModel, Callable[[Params, Params], Params]]:
  """The policy, with a critic where there is to be one; and how it begins, of the reference and of what is drawn.

  A critic of its own begins as the reward model or, with a function for a reward, as the policy with a head of zeros.
  """
  policy = lambda params, drawn: {'params': {**drawn['params'], **params['params']}}
  if not isinstance(estimator, Gae):
    return LanguageModel(cfg), policy
  if config['critic'] == 'shared':
    return ActorCritic(cfg), policy
  if config['reward']['model']:
    critic, params = load_reward(config['reward']['model'])
    made = ActorCritic(cfg, critic_config=critic.config)
    return made, lambda own, drawn: {'params': {**own['params'], 'critic': params['params']}}

  def begun(own: Params, drawn: Params) -> Params:
    head = jax.tree.map(jnp.zeros_like, {**drawn['params']['critic'], 'transformer': {}})
    return {'params': {**own['params'], 'critic': {**head, 'transformer': own['params']['transformer']}}}

  return ActorCritic(cfg, critic_config=cfg), begun
