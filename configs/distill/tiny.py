"""A model of one small layer from another: seconds on one core. For tests, and for trying a change.

Command   python -m experiments.distill --config=configs/distill/tiny.py --config.teacher=MODEL \\
            --config.data.source=file:PATH --workdir=DIR
"""

from configs.distill import base


def get_config():
  config = base.get_config()
  config.num_steps = 20
  config.batch_size = 8
  config.context = 32
  config.model.update(
    {
      'num_layers': 1,
      'model_dim': 32,
      'num_heads': 4,
      'num_kv_heads': 4,
      'mlp': 'gelu(64)',
      'positions': 'learned(64)',
    }
  )
  config.loss.update({'top_k': 8, 'chunk': 16})
  config.generate.update({'held_out_rows': 4, 'prompt_tokens': 8, 'max_new_tokens': 16, 'batch_size': 4})
  config.optimizer.learning_rate = 1e-2
  config.log_every = 1
  config.checkpoint_every = 5
  return config
