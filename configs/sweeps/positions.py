"""Learned, rotary, ALiBi and no positions, read at the trained length and beyond it.

Command   python -m experiments.sweep --sweep=configs/sweeps/positions.py --workdir=runs/positions --jobs=2
"""

from configs.sweeps.points import product, seeds

FIELDS = ('model.positions', 'model.rotation', 'model.score_bias')
LEARNED, ROTARY, ALIBI, NONE = (
  dict(zip(FIELDS, parts, strict=True))
  for parts in (
    ('learned(1024)', 'none', 'none'),
    ('none', 'rotary', 'none'),
    ('none', 'none', 'alibi'),
    ('none', 'none', 'none'),
  )
)
LENGTHS = (128, 256, 512, 1024)


def get_sweep():
  beyond = 'validation_loss_at_1024'
  return {
    'claim': 'ALiBi reads rows eight times as long as those it was trained on better than learned, rotary or no '
    'positions do.',
    'source': 'Press et al. 2022, arXiv 2108.12409',
    'experiment': 'pretrain',
    'config': 'configs/pretrain/lab.py',
    'points': product(seeds(5), [LEARNED, ROTARY, ALIBI, NONE], [{'measure.contexts': LENGTHS}]),
    'baseline': ROTARY,
    'metrics': {
      'validation_loss': 'validation loss at 128 tokens, as trained (nats per token)',
      beyond: 'validation loss at 1,024 tokens (nats per token)',
    },
    'columns': {
      'label': 'length of the rows read (tokens); trained on 128',
      'metric': 'validation loss (nats per token)',
      'at': {length: f'validation_loss_at_{length}' for length in LENGTHS},
    },
    'expect': [{'metric': beyond, 'of': ALIBI, 'than': other, 'is': 'lower'} for other in (LEARNED, ROTARY, NONE)],
  }
