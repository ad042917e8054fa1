"""Positive texts by DPO: the model of configs/instruct/snippets.py, on the rankings that the reward model learns from.

Data      asset:vader, each text rated by some twenty people; all comparisons of a ranking in one batch
Command   python -m experiments.dpo --config=configs/dpo/positive.py --workdir=runs/dpo
Result    not measured yet
"""

from configs.dpo import base


def get_config():
  config = base.get_config()
  config.init_from = 'runs/instruct'
  config.context = 48
  config.batch_size = 16
  config.data.update({'source': 'asset:vader', 'form': 'grouped'})
  config.optimizer.update({'learning_rate': 1e-4, 'warmup_steps': 20})
  config.eval_every = 100
  return config
