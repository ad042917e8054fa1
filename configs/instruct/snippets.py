"""The model of configs/pretrain/snippets.py learns to write reviews, editorials and tweets alone.

Data      asset:vader, each text an answer to nothing; packed
Command   python -m experiments.instruct --config=configs/instruct/snippets.py --workdir=runs/instruct
Result    validation loss 4.18, where it began at 4.31; five minutes on two cores
"""

from configs.instruct import base


def get_config():
  config = base.get_config()
  config.init_from = 'runs/snippets'
  config.model.residual_dropout = 0.1
  config.epochs = 2.0
  config.context = 64
  config.data.source = 'asset:vader'
  config.optimizer.update({'learning_rate': 5e-4, 'warmup_steps': 20})
  config.eval_every = 100
  return config
