"""nanoGPT's shakespeare_char on one GPU: the recipe of its config/train_shakespeare_char.py.

Model     GPT-2 of 6 layers, 384 wide, 6 heads, context 256, dropout 0.2, no biases
Recipe    AdamW, 5,000 steps of 64 rows, learning rate 1e-3 to 1e-4
Command   python -m experiments.pretrain --config=configs/pretrain/nanogpt_char.py \
            --config.data.source=file:tinyshakespeare.txt --workdir=runs/nanogpt_char
Result    not run yet, for want of a GPU; nanoGPT reports a best validation loss of 1.4697
"""

from configs.pretrain import base


def get_config():
  config = base.get_config()
  config.num_steps = 5000
  config.batch_size = 64
  config.context = 256
  config.model.update(
    {
      'family': 'gpt2_small',
      'num_layers': 6,
      'model_dim': 384,
      'num_heads': 6,
      'num_kv_heads': 6,
      'mlp': 'gelu(1536)',
      'positions': 'learned(256)',
      'use_bias': False,
      'embedding_dropout': 0.2,
      'attention_dropout': 0.2,
      'residual_dropout': 0.2,
      'dtype': 'bfloat16',
    }
  )
  config.data.source = 'asset:shakespeare'
  config.data.tokenizer = 'chars'
  config.optimizer.update({'learning_rate': 1e-3, 'warmup_steps': 100, 'b2': 0.99, 'end_fraction': 0.1})
  config.eval_every = 250
  config.eval_batch_size = 64
  config.checkpoint_every = 250
  config.keep_checkpoints = 1
  return config
