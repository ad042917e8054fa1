"""Four heads for SmolLM2-135M that end in its own unembedding, learned from what it answers itself.

Paper     Cai et al. 2024, Medusa: heads alone (Medusa-1) with learning rate 2e-3, warm-up of 40 steps, decay 0.8; the
          shared unembedding is ours: of the vocabulary's 28M parameters a head, it learns none
Data      lines of asset:chitchat asked as questions, answered greedily
Command   python -m experiments.medusa --config=configs/medusa/smollm2.py --workdir=runs/medusa
Result    not run to its end yet
"""

from configs.medusa import base


def get_config():
  config = base.get_config()
  config.base = 'asset:smollm2'
  config.shared = True
  config.num_steps = 800
  config.batch_size = 4
  config.data.source = 'asset:chitchat'
  config.generate.update({'rows': 1024, 'held_out_rows': 48, 'prompts': 'chat', 'max_new_tokens': 96})
  config.eval_every = 200
  config.checkpoint_every = 100
  return config
