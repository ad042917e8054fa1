"""What `glm_bilingual` is compared with: the same size, text and recipe, read from left to right.

Command   python -m experiments.pretrain --config=configs/pretrain/causal_bilingual.py --workdir=runs/causal
            --config.data.source='asset:gutenberg, file:tang_poems.txt'
Result    see docs/results/infilling
"""

from configs.pretrain import glm_bilingual


def get_config():
  config = glm_bilingual.get_config()
  config.model.update({'attention': 'dense', 'rotation': 'rotary'})
  config.infilling.update({'word': 0.0, 'sentence': 0.0, 'document': 0.0})
  config.sample.prompt = 'It was a'
  return config
