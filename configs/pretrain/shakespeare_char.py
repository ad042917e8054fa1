"""Characters of Shakespeare in three minutes on two cores.

Data      asset:shakespeare, 42 plays and poems, three of them held out; or the 1.1M characters of nanoGPT's
          shakespeare_char, of which the last tenth is held out. All that is held out is evaluated
Model     a small LLaMA: rotary positions, RMSNorm, SwiGLU; 0.6M parameters
Recipe    Muon, linear warm-up, cosine to zero
Command   python -m experiments.pretrain --config=configs/pretrain/shakespeare_char.py \\
            --config.data.source=file:tinyshakespeare.txt --workdir=runs/shakespeare_char
Result    validation loss 1.508 (2.175 bits per byte) after 159 seconds of training on two cores of an Intel Xeon with
          AMX, in float32, on nanoGPT's characters (nanoGPT's own CPU recipe: 1.88 in about three minutes)
"""

from configs.pretrain import base


def get_config():
  config = base.get_config()
  config.num_steps = 1400
  config.batch_size = 16
  config.context = 128
  config.model.update(
    {
      'family': 'llama2_7b',
      'num_layers': 3,
      'model_dim': 128,
      'num_heads': 4,
      'num_kv_heads': 4,
      'mlp': 'swiglu(344)',
      'init': 'scaled_normal',
      'stacked': False,  # a loop over layers is a fifth faster on CPU
    }
  )
  config.data.source = 'asset:shakespeare'
  config.data.tokenizer = 'chars'
  config.optimizer.update({'name': 'muon', 'learning_rate': 4e-3, 'warmup_steps': 100, 'end_fraction': 0.0, 'b2': 0.99})
  config.eval_every = 350
  config.sample.prompt = 'ROMEO. '
  return config
