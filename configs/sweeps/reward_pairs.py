"""What a reward model learns of few rankings: all comparisons of each in one batch, or each by itself, shuffled.

Needs     runs/instruct, of configs/instruct/snippets.py
Command   python -m experiments.sweep --sweep=configs/sweeps/reward_pairs.py --workdir=runs/reward_pairs --jobs=2
"""

from configs.sweeps.points import chain, product, seeds

# A ranking has 19 comparisons on average, so that batches of both hold as many; a text is in 6.5 - 1 of them.
GROUPED, PAIRS = ({'data.form': form} for form in ('grouped', 'pairs'))
TWICE = {**GROUPED, 'epochs': 2.0, 'batch_size': 16}
SHUFFLED = {**PAIRS, 'epochs': 2.0, 'batch_size': 304}
FEW = {'data.limit': 240, 'microbatches': 4, 'eval_every': 10}
AS_OFTEN = {**GROUPED, 'epochs': 11.0, 'batch_size': 16}


def get_sweep():
  return {
    'claim': 'Comparisons shuffled into one dataset are overfitted within an epoch or two; all comparisons of a '
    'ranking in one batch are not, and cost a fraction.',
    'source': 'Ouyang et al. 2022, section 3.5',
    'experiment': 'reward',
    'config': 'configs/reward/vader.py',
    'points': chain(product(seeds(5), [FEW], [TWICE, SHUFFLED]), product(seeds(2), [FEW], [AS_OFTEN])),
    'baseline': TWICE,
    'metrics': {
      'validation_loss': 'loss on held-out rankings (nats a comparison)',
      'loss': 'loss of the last batches',
      'best_validation_loss': 'least loss on held-out rankings',
      'validation_accuracy': 'held-out comparisons right',
      'speed.seconds': 'seconds',
    },
    'curves': {'validation_loss': 'loss on held-out rankings (nats a comparison)'},
    'expect': [
      {'metric': 'validation_loss', 'of': SHUFFLED, 'than': TWICE, 'is': 'higher'},
      {'metric': 'validation_loss', 'of': AS_OFTEN, 'than': TWICE, 'is': 'higher'},
    ],
  }
