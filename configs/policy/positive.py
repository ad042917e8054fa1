"""Positive continuations: the model of configs/instruct/snippets.py, by the reward model of configs/reward/vader.py.

Paper     Ziegler et al. 2019, section 3.1.1: a text is gone on with so that people find it positive; here the reward
          is of people's ratings, and the judge a lexicon that nothing learned from
Data      asset:vader, the first tokens of each text
Command   python -m experiments.policy --config=configs/policy/positive.py --workdir=runs/policy
Result    share of positive continuations .38 before and .86 after, KL 9.6 nats a response (five seeds, one thread
          each, docs/results/ppo_positive); four minutes on two cores
"""

from configs.policy import base


def get_config():
  config = base.get_config()
  config.init_from = 'runs/instruct'
  config.reward.model = 'runs/reward'
  config.num_rollouts = 40
  config.epochs = 2
  config.minibatches = 2
  config.data.update({'source': 'asset:vader', 'prompt_tokens': 6, 'beginnings': True})
  config.rollout.update({'prompts': 128, 'max_new_tokens': 26})
  config.kl.coefficient = 0.1
  config.optimizer.update({'learning_rate': 1e-4, 'warmup_steps': 20, 'ema': 0.0})
  config.pretraining.update({'source': 'asset:gutenberg', 'eval_rows': 256})
  config.evaluation.update({'judge': 'vader', 'prompts': 512})
  config.eval_every = 10
  return config
