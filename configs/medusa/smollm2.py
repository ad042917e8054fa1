"""Three heads for SmolLM2-135M that end in its own unembedding, learned from what it answers itself.

Paper     Cai et al. 2024, Medusa: heads alone (Medusa-1) with learning rate 2e-3, warm-up of 40 steps, decay 0.8; the
          shared unembedding is ours: of the vocabulary's 28M parameters a head, it learns none
Data      lines of asset:gutenberg put as requests of four kinds; 1,600 greedy answers of up to 96 tokens, each once
Command   python -m experiments.medusa --config=configs/medusa/smollm2.py --workdir=runs/medusa_smollm2
Result    top-1 accuracy of the three heads on held-out answers .338, .207, .157 (top-5 .593, .417, .353), 2.03 tokens a
          step expected of the whole tree; Vicuna-7B's published heads reach .560, .316, .201. 35 minutes on two cores
"""

from configs.medusa import base


def get_config():
  config = base.get_config()
  config.base = 'asset:smollm2'
  config.num_heads = 3
  config.shared = True
  config.num_steps = 400
  config.batch_size = 4
  config.loss.chunk = 0
  config.data.source = 'asset:gutenberg'
  config.generate.update({'rows': 1600, 'held_out_rows': 64, 'prompts': 'chat', 'max_new_tokens': 96, 'batch_size': 32})
  config.generate.requests = (
    '{}',
    'Write a Python function for this: {}',
    'Continue this story or text: {}',
    'Repeat this text exactly: {}',
  )
  config.checkpoint_every = 50
  return config
