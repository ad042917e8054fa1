"""Multi-head, grouped and multi-query attention: loss, cache, speed of decoding.

Command   python -m experiments.sweep --sweep=configs/sweeps/heads.py --workdir=runs/heads --jobs=2
"""

from configs.sweeps.points import product, seeds

MULTI_HEAD, GROUPED, MULTI_QUERY = ({'model.num_kv_heads': heads} for heads in (4, 2, 1))


def get_sweep():
  loss, cache, speed = 'validation_loss', 'cache_bytes_per_token', 'speed.decoding_tokens_per_second'
  measured = {'measure.decoding_rows': 8, 'measure.decoding_tokens': 512}
  return {
    'claim': 'Grouped queries lose next to nothing to multi-head attention, with a smaller cache and faster decoding.',
    'source': 'Ainslie et al. 2023, arXiv 2305.13245; Shazeer 2019, arXiv 1911.02150',
    'experiment': 'pretrain',
    'config': 'configs/pretrain/lab.py',
    'points': product(seeds(5), [MULTI_HEAD, GROUPED, MULTI_QUERY], [measured]),
    'baseline': MULTI_HEAD,
    'metrics': {
      loss: 'validation loss (nats per token)',
      cache: 'cache (bytes per token)',
      speed: 'decoding speed, 8 rows (tokens per second)',
    },
    'expect': [
      {'metric': loss, 'of': GROUPED, 'than': MULTI_HEAD, 'is': 'alike', 'margin': 0.05},
      {'metric': cache, 'of': GROUPED, 'than': MULTI_HEAD, 'is': 'lower'},
      {'metric': speed, 'of': GROUPED, 'than': MULTI_HEAD, 'is': 'higher'},
      {'metric': speed, 'of': MULTI_QUERY, 'than': MULTI_HEAD, 'is': 'higher'},
    ],
  }
