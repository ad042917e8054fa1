"""Tied against untied embeddings, in a vocabulary large enough to matter.

Command   python -m experiments.sweep --sweep=configs/sweeps/embeddings.py --workdir=runs/embeddings --jobs=2
"""

from configs.sweeps.points import product, seeds

TIED, UNTIED = ({'model.tie_embeddings': tied} for tied in (True, False))


def get_sweep():
  return {
    'claim': 'A model whose unembedding is its embedding reaches a lower loss with fewer parameters.',
    'source': 'Press and Wolf 2017, arXiv 1608.05859',
    'experiment': 'pretrain',
    'config': 'configs/pretrain/lab.py',
    'points': product(seeds(5), [TIED, UNTIED], [{'data.tokenizer': 'bpe:4096'}]),
    'baseline': UNTIED,
    'metrics': {
      'validation_loss': 'validation loss (nats per token)',
      'parameters': 'parameters',
    },
    'expect': [
      {'metric': metric, 'of': TIED, 'than': UNTIED, 'is': 'lower'} for metric in ('validation_loss', 'parameters')
    ],
  }
