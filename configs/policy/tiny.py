"""A run of seconds on one core. For tests, and for trying a change.

Command   python -m experiments.policy --config=configs/policy/tiny.py --config.init_from=MODEL \\
            --config.reward.model=DIR --config.data.source=file:PATH.jsonl --workdir=DIR
"""

from configs.policy import base


def get_config():
  config = base.get_config()
  config.num_rollouts = 4
  config.epochs = 2
  config.minibatches = 2
  config.data.update({'prompt_tokens': 6, 'beginnings': True})
  config.rollout.update({'prompts': 16, 'max_new_tokens': 10})
  config.optimizer.update({'learning_rate': 3e-3, 'warmup_steps': 2, 'ema': 0.0})
  config.pretraining.update({'context': 16, 'eval_rows': 8, 'per_episode': 1.0})
  config.evaluation.prompts = 16
  config.eval_batch_size = 8
  config.checkpoint_every = 1
  config.keep_checkpoints = 4
  return config
