"""A draft of 11M parameters for SmolLM2-135M: two layers, a fifth as wide, in its vocabulary.

Paper     Leviathan et al. 2023, section 3.6, on what a draft should be; Hinton et al. 2015 for the loss
Data      asset:chitchat, the teacher's 32 likeliest tokens at every place
Command   python -m experiments.distill --config=configs/distill/smollm2_draft.py --workdir=runs/draft
Result    not run yet
"""

from configs.distill import base


def get_config():
  config = base.get_config()
  config.teacher = 'asset:smollm2'
  config.num_steps = 2000
  config.batch_size = 8
  config.context = 256
  config.model.update(
    {
      'family': 'smollm2_135m',
      'num_layers': 2,
      'model_dim': 192,
      'num_heads': 3,
      'num_kv_heads': 3,
      'mlp': 'swiglu(512)',
      'init': 'scaled_normal',
      'stacked': False,
    }
  )
  config.data.source = 'asset:chitchat'
  config.optimizer.update({'learning_rate': 2e-3, 'warmup_steps': 100, 'end_fraction': 0.0})
  config.eval_every = 500
  config.checkpoint_every = 250
  return config
