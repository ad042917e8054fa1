"""How fast a rollout writes, against plain decoding of the same prompts, and where the time of a PPO step goes.

  python bench/rollouts.py [--quick]

The policy, critic and batch of configs/policy/positive.py, with parameters drawn at random, in one run; every response
has all of its tokens. A step of PPO is a rollout (sampling, scoring by a reward model, reading by policy, critic and
reference) and its updates.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from configs.policy import positive
from configs.pretrain import snippets
from gpt_jax.data.rows import one_text
from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.decoding.steps import unstacked
from gpt_jax.models.heads import ActorCritic, LanguageModel, RewardModel, policy_params
from gpt_jax.models.parts import from_config
from gpt_jax.objectives.policy import policy_loss
from gpt_jax.rollouts import Gae, Kl, Rollouts, Writing
from gpt_jax.training.loop import init_state, make_step
from gpt_jax.training.optimizers import make_optimizer

VOCABULARY = 4096
CONFIG = positive.get_config()


def reward_of(model, params):
  apply = jax.jit(model.apply)

  def reward(responses):
    tokens = np.array([[*one.prompt, *one.tokens] for one in responses], np.int32)
    return np.asarray(apply(params, jnp.asarray(tokens), one_text(tokens >= 0)))

  return reward


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--quick', action='store_true', help='two rounds')
  rounds = 2 if parser.parse_args().quick else 5
  rollout, size = CONFIG.rollout, CONFIG.data.prompt_tokens
  config = from_config({**snippets.get_config().model.to_dict(), 'vocab_size': VOCABULARY})
  model, rewarding = ActorCritic(config, critic_config=config), RewardModel(config)
  params = jax.jit(lambda key: model.init(key, jnp.zeros((1, 1), int), method='features_and_values'))(jax.random.key(0))
  prompts = np.random.default_rng(0).integers(0, VOCABULARY, (rollout.prompts, size)).tolist()
  sampling = Sampling(rollout.temperature)
  source = Rollouts(
    model, policy_params(params), lambda number: prompts, len(prompts), size, Writing(rollout.max_new_tokens, sampling),
    reward_of(rewarding, jax.jit(rewarding.init)(jax.random.key(1), jnp.zeros((1, 1), int))), Gae(), Kl(),
    CONFIG.minibatches, CONFIG.epochs, 0, pathlib.Path(tempfile.mkdtemp()) / 'rollouts.jsonl', str,
  )  # fmt: skip
  optimizer = make_optimizer(CONFIG.optimizer.to_dict(), 1000)
  step = make_step(policy_loss(model), optimizer, seed=0)
  state = init_state(jax.tree.map(jnp.copy, params), optimizer)  # a step donates it
  steps, plain, parts = CONFIG.minibatches * CONFIG.epochs, [], []
  for number in range(rounds + 1):
    language_model, own = unstacked(LanguageModel(config), policy_params(state.params))
    start = time.perf_counter()
    generate(language_model, own, prompts, max_new_tokens=rollout.max_new_tokens, sampling=sampling, seed=number)
    seconds = time.perf_counter() - start
    source.seconds.clear()
    for batch in source(number * steps, state):
      state, _ = step(state, batch)
    source.settle(state.params)
    if number:  # the first compiles
      plain.append(seconds)
      parts.append(dict(source.seconds))
  medians = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
  tokens, whole = rollout.prompts * rollout.max_new_tokens, sum(medians.values())
  figures = {
    'plain_tokens_per_second': tokens / statistics.median(plain),
    'rollout_tokens_per_second': tokens / medians['sampling'],
    'rollout_over_plain': statistics.median(taken / part['sampling'] for taken, part in zip(plain, parts, strict=True)),
    **{f'{name}_share': seconds / whole for name, seconds in medians.items()},
  }
  for name, value in figures.items():
    print(f'{name:28} {value:,.3f}')
  print(json.dumps({**figures, 'device': jax.devices()[0].device_kind}))


if __name__ == '__main__':
  main()
