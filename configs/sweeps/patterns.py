"""Dense, banded, strided, fixed and alternating attention at equal tokens; bands of 32 to 512.

What time they take stands in bench/attention.py: points of a sweep share their machine.

Command   python -m experiments.sweep --sweep=configs/sweeps/patterns.py --workdir=runs/patterns --jobs=2
"""

from configs.sweeps.points import product, seeds

DENSE, ALTERNATING, STRIDED, FIXED = (
  {'model.attention': text} for text in ('dense', 'dense, banded(128)', 'strided(32)', 'fixed(32, 4)')
)
NARROW, *WIDER = ({'model.attention': f'banded({width})'} for width in (32, 64, 128, 256, 512))

# Rows long enough for a band to leave most of them out, of novels, plays and conversations.
PROSE = {
  'context': 1024,
  'batch_size': 2,
  'num_steps': 300,
  'optimizer.learning_rate': 1e-3,  # at lab's 3e-3 so few rows a step are unstable
  'optimizer.warmup_steps': 40,
  'eval_rows': 32,
  'data.source': 'asset:gutenberg, asset:shakespeare, asset:chitchat',
  'data.weights': (0.6, 0.2, 0.2),
}


def get_sweep():
  loss = 'validation_loss'
  return {
    'claim': 'Sparse attention reaches the loss of dense attention for fewer FLOPs: alternating with it, or alone.',
    'source': 'Child et al. 2019, arXiv 1904.10509; Brown et al. 2020, section 2.1, whose band width is unpublished',
    'experiment': 'pretrain',
    'config': 'configs/pretrain/lab.py',
    'points': product(seeds(3), [DENSE, NARROW, *WIDER, STRIDED, FIXED, ALTERNATING], [PROSE]),
    'baseline': DENSE,
    'metrics': {loss: 'validation loss (nats per token)'},
    'x': 'training_flops',
    'x_label': 'training compute (FLOPs)',
    'expect': [
      {'metric': loss, 'of': ALTERNATING, 'than': DENSE, 'is': 'alike', 'margin': 0.02},
      {'metric': loss, 'of': STRIDED, 'than': DENSE, 'is': 'alike', 'margin': 0.02},
      {'metric': loss, 'of': FIXED, 'than': DENSE, 'is': 'alike', 'margin': 0.02},
      {'metric': loss, 'of': NARROW, 'than': DENSE, 'is': 'higher'},
    ],
  }  # fmt: skip
