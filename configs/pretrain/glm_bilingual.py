"""A small GLM on English novels and Tang poetry: blanks filled by what stands on both sides of them.

Model     GLM (Du et al. 2022) with ChatGLM-6B's rotation: part A read both ways; 3 layers, 64 wide, 2 heads
Data      novels and poems in proportion 2 : 1, in a BPE of 1,024 tokens trained on them; the poems are a text file
Blanks    in seven tenths of the rows words (Poisson 3, 0 to 40%), in a tenth sentences, in a fifth the rest of a text
Command   python -m experiments.pretrain --config=configs/pretrain/glm_bilingual.py --workdir=runs/glm
            --config.data.source='asset:gutenberg, file:tang_poems.txt'
Result    see docs/results/infilling
"""

from configs.pretrain import base


def get_config():
  config = base.get_config()
  config.num_steps = 12_000
  config.batch_size = 16
  config.context = 128
  config.model.update(
    {
      'family': 'glm_large',
      'num_layers': 3,
      'model_dim': 64,
      'num_heads': 2,
      'num_kv_heads': 2,
      'mlp': 'gelu(256)',
      'positions': 'none',
      'rotation': 'rotary_2d(theta=100)',
      'stacked': False,
    }
  )
  config.infilling.update({'word': 0.7, 'sentence': 0.1, 'document': 0.2, 'least_ratio': 0.0, 'ratio': 0.4})
  config.data.source = 'asset:gutenberg, file:tang_poems.txt'
  config.data.weights = (2.0, 1.0)
  config.data.tokenizer = 'bpe:1024'
  config.optimizer.update({'name': 'muon', 'learning_rate': 1e-2, 'warmup_steps': 60, 'end_fraction': 0.0, 'b2': 0.98})
  config.eval_rows = 128
  config.eval_every = 2000
  config.checkpoint_every = 2000
  config.sample.prompt = 'It was a [MASK] day, and she had [MASK] to say.'
  config.sample.max_new_tokens = 20
  return config
