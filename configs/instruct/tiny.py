"""A run of seconds on one core. For tests, and for trying a change.

Command   python -m experiments.instruct --config=configs/instruct/tiny.py --config.init_from=MODEL \\
            --config.data.source=file:PATH.jsonl --workdir=DIR
"""

from configs.instruct import base


def get_config():
  config = base.get_config()
  config.model.residual_dropout = None
  config.epochs = 4.0
  config.batch_size = 8
  config.eval_batch_size = 8
  config.context = 48
  config.optimizer.learning_rate = 3e-3
  config.log_every = 1
  config.checkpoint_every = 5
  config.keep_checkpoints = 2
  return config
