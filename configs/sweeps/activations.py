"""GELU against the gated SwiGLU and GeGLU, at equal parameters.

Command   python -m experiments.sweep --sweep=configs/sweeps/activations.py --workdir=runs/activations --jobs=2
"""

from configs.sweeps.points import product, seeds

# 2 x 128 x 516 parameters a layer, and 3 x 128 x 344.
GELU, SWIGLU, GEGLU = ({'model.mlp': mlp} for mlp in ('gelu(516)', 'swiglu(344)', 'geglu(344)'))


def get_sweep():
  return {
    'claim': 'At equal parameters, gated feed-forward layers reach a lower loss than GELU.',
    'source': 'Shazeer 2020, arXiv 2002.05202',
    'experiment': 'pretrain',
    'config': 'configs/pretrain/lab.py',
    'points': product(seeds(5), [GELU, SWIGLU, GEGLU]),
    'baseline': GELU,
    'metrics': {
      'validation_loss': 'validation loss (nats per token)',
      'parameters': 'parameters',
    },
    'expect': [{'metric': 'validation_loss', 'of': gated, 'than': GELU, 'is': 'lower'} for gated in (SWIGLU, GEGLU)],
  }
