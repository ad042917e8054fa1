"""LLaMA-2 70B: grouped queries, SwiGLU, rotary places, rows of 4,096 tokens.

Paper     Touvron et al. 2023, arXiv 2307.09288, section 2.2: 2T tokens in batches of 4M; AdamW .9, .95, 1e-5 at
          1.5e-4 after 2,000 steps of warm-up, cosine to a tenth, weight decay .1, clip 1. The text is not public:
          SlimPajama stands in, and the tokenizer is a file that Meta gives
Mesh      for v5p:8x8x8, 512 chips: parameters over the 64 chips of two axes of the torus, rows over all
Plan      python -m experiments.plan --config=configs/pretrain/llama2_70b.py --topology=v5p:8x8x8
Command   python -m experiments.pretrain --config=configs/pretrain/llama2_70b.py --workdir=runs/llama2_70b
Result    not run yet; docs/results/plan has what a step needs
"""

from configs.pretrain import llama2_7b


def get_config():
  config = llama2_7b.get_config()
  config.model.family = 'llama2_70b'
  config.optimizer.learning_rate = 1.5e-4
  config.mesh.fsdp = 64
  return config
