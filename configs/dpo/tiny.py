"""A run of seconds on one core. For tests, and for trying a change.

Command   python -m experiments.dpo --config=configs/dpo/tiny.py --config.init_from=MODEL \\
            --config.data.source=file:PATH.jsonl --workdir=DIR
"""

from configs.dpo import base


def get_config():
  config = base.get_config()
  config.batch_size = 8
  config.eval_batch_size = 8
  config.context = 32
  config.optimizer.update({'learning_rate': 1e-3, 'warmup_steps': 2})
  config.log_every = 1
  config.checkpoint_every = 5
  config.keep_checkpoints = 2
  return config
