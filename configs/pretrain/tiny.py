"""A model of two small layers on any text: seconds on one core. For tests, and for trying a change.

Command   python -m experiments.pretrain --config=configs/pretrain/tiny.py --config.data.source=file:PATH --workdir=DIR
"""

from configs.pretrain import base


def get_config():
  config = base.get_config()
  config.num_steps = 20
  config.batch_size = 8
  config.eval_batch_size = 8
  config.context = 32
  config.model.update(
    {
      'num_layers': 2,
      'model_dim': 32,
      'num_heads': 4,
      'num_kv_heads': 2,
      'mlp': 'gelu(64)',
      'positions': 'learned(64)',
    }
  )
  config.data.tokenizer = 'chars'
  config.optimizer.learning_rate = 1e-2
  config.log_every = 1
  config.checkpoint_every = 5
  return config
