"""GPT-3's smallest model, dense and locally banded layers in turn.

Paper     Brown et al. 2020, table 2.1 and appendix B: 300B tokens in batches of 0.5M, rows of 2,048; Adam, learning
          rate 6e-4, warm-up over 375M tokens, cosine to 10% over 260B; the batch grows from 32K over the first 4B.
          Which layers are banded, and how wide, is not published: families.GPT3_BAND is a choice, another is made by
          --config.model.attention. The text is not public: OpenWebText stands in
Command   python -m experiments.pretrain --config=configs/pretrain/gpt3_125m.py --workdir=runs/gpt3_125m
Result    not run yet
"""

from configs.pretrain import gpt2_small


def get_config():
  config = gpt2_small.get_config()
  config.num_steps = 597_129  # of the growing batch, for 300B tokens
  config.batch_size = 256
  config.microbatches = 1
  config.context = 2048
  config.model.family = 'gpt3_125m'
  config.batch_ramp.update({'first_rows': 16, 'ramp_tokens': 4_000_000_000})
  # After 375M tokens, and after 260B.
  config.optimizer.update({'warmup_steps': 9792, 'decay_steps': 520_835})
  return config
