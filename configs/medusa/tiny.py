"""Heads for a model of two small layers: seconds on one core. For tests, and for trying a change.

Command   python -m experiments.medusa --config=configs/medusa/tiny.py --config.base=MODEL \\
            --config.data.source=file:PATH --workdir=DIR
"""

from configs.medusa import base


def get_config():
  config = base.get_config()
  config.num_heads = 3
  config.num_steps = 20
  config.batch_size = 8
  config.eval_batch_size = 8
  config.context = 32
  config.loss.chunk = 16
  config.tree.num_nodes = 16
  config.optimizer.update({'learning_rate': 1e-2, 'warmup_steps': 2})
  config.generate.update({'held_out_rows': 4, 'prompt_tokens': 8, 'max_new_tokens': 16, 'batch_size': 4})
  config.log_every = 1
  config.checkpoint_every = 5
  config.keep_checkpoints = 2
  return config
