"""LLaMA-2 7B: SwiGLU, RMSNorm, rotary places, rows of 4,096 tokens.

Paper     Touvron et al. 2023, arXiv 2307.09288, section 2.2: 2T tokens in batches of 4M; AdamW .9, .95, 1e-5 at 3e-4
          after 2,000 steps of warm-up, cosine to a tenth, weight decay .1, clip 1. The text is not public: SlimPajama
          stands in, and the tokenizer is a file that Meta gives
Mesh      for v5p:4x4x4, 64 chips: parameters over the 16 chips of two axes of the torus, rows over all
Plan      python -m experiments.plan --config=configs/pretrain/llama2_7b.py --topology=v5p:4x4x4
Command   python -m experiments.pretrain --config=configs/pretrain/llama2_7b.py --workdir=runs/llama2_7b
Result    not run yet; docs/results/plan has what a step needs
"""

from configs.pretrain import base


def get_config():
  config = base.get_config()
  config.num_steps = 476_838  # 2T tokens
  config.batch_size = 1024
  config.context = 4096
  config.model.update({'family': 'llama2_7b', 'dtype': 'bfloat16', 'remat': 'full'})
  config.data.source = 'hf:cerebras/SlimPajama-627B'
  config.data.tokenizer = 'sentencepiece:tokenizer.model'
  config.data.held_out = 0.001
  config.loss.chunk = 256
  config.optimizer.update({'learning_rate': 3e-4, 'warmup_steps': 2000, 'eps': 1e-5})
  config.mesh.fsdp = 16
  config.eval_every = 1000
  config.checkpoint_every = 500
  return config
