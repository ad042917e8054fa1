"""Three heads for SmolLM2-135M that end in its own unembedding, learned from what it answers itself.

Paper     Cai et al. 2024, Medusa: heads alone (Medusa-1) with learning rate 2e-3, warm-up of 40 steps, decay 0.8; the
          shared unembedding is ours: of the vocabulary's 28M parameters a head, it learns none
Data      lines of asset:gutenberg put as questions; answers of up to 128 tokens, drawn at temperature 0.3
Command   python -m experiments.medusa --config=configs/medusa/smollm2.py --workdir=runs/medusa
Result    top-1 accuracy of the three heads on held-out answers .255, .141, .082 (top-5 .512, .356, .271), 1.86 tokens a
          step expected: 150 steps of 4 answers are few, and Vicuna-7B's published heads reach .560, .316, .201
"""

from configs.medusa import base


def get_config():
  config = base.get_config()
  config.base = 'asset:smollm2'
  config.num_heads = 3
  config.shared = True
  config.num_steps = 150
  config.batch_size = 4
  config.data.source = 'asset:gutenberg'
  config.generate.update({'rows': 384, 'held_out_rows': 32, 'prompts': 'chat', 'temperature': 0.3})
  config.checkpoint_every = 50
  return config
