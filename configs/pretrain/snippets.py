"""A small model of what people write about films, products and the news, with novels beside it, to be aligned.

Data      asset:vader and asset:gutenberg, half each; texts apart, so that each begins as one
Model     a small LLaMA: rotary positions, RMSNorm, SwiGLU; 5.3M parameters
Recipe    Muon, linear warm-up, cosine to zero
Command   python -m experiments.pretrain --config=configs/pretrain/snippets.py --workdir=runs/snippets
Result    validation loss 4.39 (1.95 bits per byte); about eight minutes on two cores
"""

from configs.pretrain import shakespeare_char


def get_config():
  config = shakespeare_char.get_config()
  config.num_steps = 1000
  config.batch_size = 32
  config.context = 64
  config.model.update({'num_layers': 4, 'model_dim': 256, 'mlp': 'swiglu(688)'})
  config.data.source = 'asset:vader,asset:gutenberg'
  config.data.tokenizer = 'bpe:4096'
  config.data.separate_documents = True
  config.eval_every = 250
  config.eval_rows = 512
  config.sample.update({'prompt': 'The film', 'max_new_tokens': 60})
  return config
