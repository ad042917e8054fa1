"""A few million parameters on a mixture of English prose: novels, plays and conversations.

Model     a small LLaMA with grouped queries: 6 layers, 256 wide, 8 heads over 2
Data      three sources in proportion 6 : 2 : 2, in a BPE of 4,096 tokens trained on them; documents apart
Command   python -m experiments.pretrain --config=configs/pretrain/prose.py --workdir=runs/prose
Result    not run to its end yet
"""

from configs.pretrain import base


def get_config():
  config = base.get_config()
  config.num_steps = 5000
  config.batch_size = 16
  config.context = 256
  config.model.update(
    {
      'family': 'llama2_7b',
      'num_layers': 6,
      'model_dim': 256,
      'num_heads': 8,
      'num_kv_heads': 2,
      'mlp': 'swiglu(688)',
      'init': 'scaled_normal',
      'tie_embeddings': True,
      'stacked': False,
    }
  )
  config.data.source = 'asset:gutenberg, asset:shakespeare, asset:chitchat'
  config.data.weights = (0.6, 0.2, 0.2)
  config.data.tokenizer = 'bpe:4096'
  config.data.separate_documents = True
  config.optimizer.update({'name': 'muon', 'learning_rate': 4e-3, 'warmup_steps': 100, 'end_fraction': 0.0, 'b2': 0.99})
  config.eval_every = 1000
  config.checkpoint_every = 1000
  config.sample.prompt = 'It was a'
  return config
