"""LayerNorm against RMSNorm.

Command   python -m experiments.sweep --sweep=configs/sweeps/norms.py --workdir=runs/norms --jobs=2
"""

from configs.sweeps.points import product, seeds

LAYER, RMS = ({'model.norm': norm} for norm in ('layer', 'rms'))


def get_sweep():
  return {
    'claim': 'RMSNorm trains as well as LayerNorm, and faster.',
    'source': 'Zhang and Sennrich 2019, arXiv 1910.07467',
    'experiment': 'pretrain',
    'config': 'configs/pretrain/lab.py',
    'points': product(seeds(5), [LAYER, RMS]),
    'baseline': LAYER,
    'metrics': {
      'validation_loss': 'validation loss (nats per token)',
      'speed.tokens_per_second': 'training speed (tokens per second)',
    },
    'expect': [
      {'metric': 'validation_loss', 'of': RMS, 'than': LAYER, 'is': 'alike', 'margin': 0.02},
      {'metric': 'speed.tokens_per_second', 'of': RMS, 'than': LAYER, 'is': 'higher'},
    ],
  }
