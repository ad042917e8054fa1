"""Loss against compute: eight models, each larger than the one before and trained for longer.

Command   python -m experiments.sweep --sweep=configs/sweeps/compute.py --workdir=runs/compute --jobs=2
"""

from configs.sweeps.points import param, product, seeds, zipped

# Layers, width, feed-forward width, steps: 80 times the arithmetic from the first to the last.
MODELS = (
  (2, 32, 88, 60),
  (2, 48, 128, 75),
  (2, 64, 176, 95),
  (3, 64, 176, 115),
  (3, 96, 256, 140),
  (4, 96, 256, 175),
  (4, 128, 344, 210),
  (4, 160, 432, 250),
)


def get_sweep():
  layers, widths, hidden, steps = zip(*MODELS, strict=True)
  models = zipped(
    param('model.num_layers', layers),
    param('model.model_dim', widths),
    param('model.mlp', [f'swiglu({width})' for width in hidden]),
    param('num_steps', steps),
  )
  return {
    'claim': 'Loss falls with training compute along a power law.',
    'source': 'Kaplan et al. 2020, arXiv 2001.08361; Brown et al. 2020, figure 3.1: 2.57 C^-0.048, C in PFLOP/s-days',
    'experiment': 'pretrain',
    'config': 'configs/pretrain/lab.py',
    'points': product(seeds(5), models),
    'baseline': models[0],
    'metrics': {'validation_loss': 'validation loss (nats per token)'},
    'x': 'training_flops',
    'x_label': 'training compute (FLOPs)',
    'fit': True,
    'expect': [{'is': 'straight', 'margin': 0.02}],
  }
