"""GPT-2 small on OpenWebText.

Paper     Radford et al. 2019, Language Models are Unsupervised Multitask Learners: batch of 512 rows of 1,024 tokens.
          The optimiser is not in the paper: AdamW as in GPT-3, whose learning rate and decay it also takes
Command   python -m experiments.pretrain --config=configs/pretrain/gpt2_small.py --workdir=runs/gpt2_small
Result    not run yet; nanoGPT reports a validation loss of about 2.85 after 600,000 steps
"""

from configs.pretrain import base


def get_config():
  config = base.get_config()
  config.num_steps = 600_000
  config.batch_size = 512
  config.microbatches = 8
  config.context = 1024
  config.model.update({'family': 'gpt2_small', 'dtype': 'bfloat16'})
  config.data.source = 'hf:Skylion007/openwebtext'
  config.data.held_out = 0.01
  config.loss.chunk = 256
  config.optimizer.update({'learning_rate': 6e-4, 'warmup_steps': 2000})
  config.eval_every = 1000
  config.checkpoint_every = 1000
  return config
