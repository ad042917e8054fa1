"""Where the norms stand, over depths and learning rates: which models can still be trained, and how well.

Rates, steps and untied embeddings were chosen after trials on one seed in which, tied, no form of post-norm learned.

Command   python -m experiments.sweep --sweep=configs/sweeps/deepnorm.py --workdir=runs/deepnorm --jobs=2
"""

from configs.sweeps.points import param, product, seeds

PRE, POST, DEEPNET, GLM = (
  {'model.residual': residual, 'model.init': init}
  for residual, init in (
    ('pre', 'xavier'),
    ('post', 'xavier'),
    ('post(alpha=deepnet)', 'xavier(gain=deepnet)'),
    ('post(alpha=glm)', 'xavier(gain=glm)'),
  )
)
DEPTHS, RATES = [4, 12, 24], [1e-3, 3e-3, 1e-2]
SHAPE = {
  'model.model_dim': 64,
  'model.mlp': 'swiglu(172)',
  'model.stacked': True,
  'model.tie_embeddings': False,  # the sum behind a norm begins as the token itself: tied, that is what it predicts
  'num_steps': 400,
  'batch_size': 4,
  'context': 64,
  'optimizer.warmup_steps': 40,
  'eval_rows': 64,
}


def get_sweep():
  loss = 'validation_loss'
  axes = (seeds(3), param('model.num_layers', DEPTHS), param('optimizer.learning_rate', RATES))
  deep = {'model.num_layers': DEPTHS[-1]}
  return {
    'claim': 'Post-norm diverges or stalls as depth grows; DeepNorm trains at any depth, by either set of constants.',
    'source': 'Wang et al. 2022, arXiv 2203.00555, figure 2; Zeng et al. 2022, arXiv 2210.02414, section 2.1',
    'experiment': 'pretrain',
    'config': 'configs/pretrain/lab.py',
    'points': product(*axes, [PRE, POST, DEEPNET, GLM], [SHAPE]),
    'baseline': PRE,
    'metrics': {loss: 'validation loss (nats per token)'},
    'x': 'model.num_layers',
    'expect': [
      {'metric': loss, 'of': {**better, **deep, 'optimizer.learning_rate': rate}, 'than': POST, 'is': 'lower'}
      for better in (DEEPNET, GLM)
      for rate in RATES
    ],
  }
