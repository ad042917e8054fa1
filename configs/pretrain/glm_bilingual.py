"""A small GLM on English novels and Tang poetry: blanks filled by what stands on both sides of them.

Model     GLM (Du et al. 2022): pre-norm, two learned positions, part A read both ways; 3 layers, 128 wide, 4 heads
Data      novels and poems in proportion 2 : 1, in a BPE of 4,096 tokens trained on them; the poems are a text file
Blanks    half of the rows words (Poisson 3, 15%), three tenths sentences, a fifth the rest of the text
Command   python -m experiments.pretrain --config=configs/pretrain/glm_bilingual.py --workdir=runs/glm
            --config.data.source='asset:gutenberg, file:tang_poems.txt'
Result    see docs/results/infilling
"""

from configs.pretrain import base


def get_config():
  config = base.get_config()
  config.num_steps = 1200
  config.batch_size = 16
  config.context = 128
  config.model.update(
    {
      'family': 'glm_large',
      'num_layers': 3,
      'model_dim': 128,
      'num_heads': 4,
      'num_kv_heads': 4,
      'mlp': 'gelu(512)',
      'positions': 'learned_2d(129)',
      'stacked': False,
    }
  )
  config.infilling.update({'word': 0.5, 'sentence': 0.3, 'document': 0.2})
  config.data.source = 'asset:gutenberg, file:tang_poems.txt'
  config.data.weights = (2.0, 1.0)
  config.data.tokenizer = 'bpe:4096'
  config.optimizer.update({'learning_rate': 3e-3, 'warmup_steps': 60, 'end_fraction': 0.0, 'b2': 0.98})
  config.eval_rows = 256
  config.eval_every = 600
  config.checkpoint_every = 600
  config.sample.prompt = 'It was a [MASK] day, and she had [MASK] to say.'
  config.sample.max_new_tokens = 20
  return config
