"""Three heads for the model that `make quickstart` trains, on the same plays: a minute on two CPU cores.

Paper     Cai et al. 2024, Medusa: heads alone (Medusa-1), decay 0.8
Data      asset:shakespeare, as that run
Command   python -m experiments.medusa --config=configs/medusa/shakespeare_char.py --workdir=runs/medusa
Result    top-1 accuracy of the three heads on held-out plays .279, .195, .172; 1.95 tokens a step expected
"""

from configs.medusa import base


def get_config():
  config = base.get_config()
  config.base = 'runs/quickstart'
  config.num_heads = 3
  config.num_steps = 600
  config.batch_size = 32
  config.context = 64
  config.loss.chunk = 0
  config.data.source = 'asset:shakespeare'
  config.tree.num_nodes = 16
  config.eval_rows = 256
  config.eval_batch_size = 64
  return config
