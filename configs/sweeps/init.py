"""GPT-2's scaling of the residual projections at the start, by depth.

Command   python -m experiments.sweep --sweep=configs/sweeps/init.py --workdir=runs/init --jobs=2
"""

from configs.sweeps.points import param, product, seeds

PLAIN, SCALED = ({'model.init': init} for init in ('normal(0.02)', 'scaled_normal(0.02)'))


def get_sweep():
  return {
    'claim': 'Layers that write to the residual stream should begin smaller by 1 / sqrt(2 L): the loss is '
    'lower for it, the more so the deeper the model.',
    'source': 'Radford et al. 2019 (GPT-2), section 2.3',
    'experiment': 'pretrain',
    'config': 'configs/pretrain/lab.py',
    'points': product(seeds(5), param('model.num_layers', [2, 8]), [PLAIN, SCALED]),
    'baseline': PLAIN,
    'metrics': {'validation_loss': 'validation loss (nats per token)'},
    'x': 'model.num_layers',
    'expect': [
      {'metric': 'validation_loss', 'of': {**SCALED, 'model.num_layers': depth}, 'than': PLAIN, 'is': 'lower'}
      for depth in (2, 8)
    ],
  }
