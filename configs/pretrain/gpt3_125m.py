"""GPT-3's smallest model, dense and locally banded layers in turn.

Paper     Brown et al. 2020, table 2.1 and appendix B: 300B tokens in batches of 0.5M, rows of 2,048; Adam, learning
          rate 6e-4, warm-up over 375M tokens, cosine to 10% over 260B; the batch grows from 32K over the first 4B.
          Which layers are banded, and how wide, is not published: families.GPT3_BAND is a choice, another is made by
          --config.model.attention. The text is not public: OpenWebText stands in
Command   python -m experiments.pretrain --config=configs/pretrain/gpt3_125m.py --workdir=runs/gpt3_125m
Result    not run yet
"""

from configs.pretrain import base


def get_config():
  config = base.get_config()
  config.num_steps = 597_129  # of the growing batch, for 300B tokens
  config.batch_size = 256
  config.context = 2048
  config.model.update({'family': 'gpt3_125m', 'dtype': 'bfloat16'})
  config.data.source = 'hf:Skylion007/openwebtext'
  config.data.held_out = 0.01
  config.loss.chunk = 256
  config.batch_ramp.update({'first_rows': 16, 'ramp_tokens': 4_000_000_000})
  # After 375M tokens, and after 260B.
  config.optimizer.update({'learning_rate': 6e-4, 'warmup_steps': 9792, 'decay_steps': 520_835})
  config.eval_every = 1000
  config.checkpoint_every = 1000
  return config
