"""GPT-3's smallest model, dense and locally banded layers in turn.

Paper     Brown et al. 2020, table 2.1 and appendix B: 300B tokens in batches of 0.5M, rows of 2,048; Adam, learning
          rate 6e-4, warm-up over 375M tokens, cosine to 10% over 260B; the batch grows from 32K over the first 4B.
          Which layers are banded, and how wide, is not published: families.GPT3_BAND is a choice, another is made by
          --config.model.attention. The text is not public: OpenWebText stands in
Command   python -m experiments.pretrain --config=configs/pretrain/gpt3_125m.py --workdir=runs/gpt3_125m
Result    not run yet
"""

from configs.pretrain import base
from gpt_jax.training.schedules import BatchRamp

ROWS, CONTEXT = 256, 2048
RAMP = {'first_rows': 16, 'ramp_tokens': 4_000_000_000}


def steps(tokens: int) -> int:
  """Of the growing batch, until so many tokens are read."""
  ramp = BatchRamp(ROWS, CONTEXT, **RAMP)
  low, high = 0, tokens // (RAMP['first_rows'] * CONTEXT) + 1
  while low < high:
    middle = (low + high) // 2
    low, high = (low, middle) if ramp.start(middle) * CONTEXT >= tokens else (middle + 1, high)
  return low


def get_config():
  config = base.get_config()
  config.num_steps = steps(300_000_000_000)
  config.batch_size = ROWS
  config.context = CONTEXT
  config.model.update({'family': 'gpt3_125m', 'dtype': 'bfloat16'})
  config.data.source = 'hf:Skylion007/openwebtext'
  config.data.held_out = 0.01
  config.loss.chunk = 256
  config.batch_ramp.update(RAMP)
  config.optimizer.update(
    {'learning_rate': 6e-4, 'warmup_steps': steps(375_000_000), 'decay_steps': steps(260_000_000_000)}
  )
  config.eval_every = 1000
  config.checkpoint_every = 1000
  return config
