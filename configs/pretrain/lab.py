"""The bench on which parts of the lineage are compared: small enough for many seeds on two cores.

Data      asset:shakespeare in a BPE of 1,024 tokens trained on it; the first 256 held-out rows are evaluated
Model     a LLaMA of 4 layers, 128 wide, 4 heads: 0.9M parameters
Recipe    AdamW, linear warm-up, cosine to zero; 200 steps of 1,024 tokens
Command   python -m experiments.pretrain --config=configs/pretrain/lab.py --workdir=runs/lab
Result    see docs/results
"""

from configs.pretrain import base


def get_config():
  config = base.get_config()
  config.num_steps = 200
  config.batch_size = 8
  config.context = 128
  config.model.update(
    {
      'family': 'llama2_7b',
      'num_layers': 4,
      'model_dim': 128,
      'num_heads': 4,
      'num_kv_heads': 4,
      'mlp': 'swiglu(344)',
      'init': 'scaled_normal',
      'tie_embeddings': True,
      'stacked': False,
    }
  )
  config.data.source = 'asset:shakespeare'
  config.data.tokenizer = 'bpe:1024'
  config.optimizer.update({'learning_rate': 3e-3, 'warmup_steps': 20, 'end_fraction': 0.0, 'b2': 0.99})
  config.log_every = 10
  config.eval_rows = 256
  config.keep_checkpoints = 1
  config.checkpoint_every = 100
  return config
