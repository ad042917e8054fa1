"""Where the norms stand, over learning rates, without warm-up.

Command   python -m experiments.sweep --sweep=configs/sweeps/residual.py --workdir=runs/residual --jobs=2
"""

from configs.sweeps.points import param, product, seeds

# DeepNorm of a decoder of L = 8 layers: alpha (2 L)^(1/4), gain (8 L)^(-1/4) (DeepNet, figure 2).
PRE, POST, DEEP = (
  {'model.residual': 'pre', 'model.init': 'xavier'},
  {'model.residual': 'post', 'model.init': 'xavier'},
  {'model.residual': 'post(alpha=2.0)', 'model.init': 'xavier(gain=0.3536)'},
)


def get_sweep():
  shape = {'model.num_layers': 8, 'model.model_dim': 96, 'model.mlp': 'swiglu(256)'}
  recipe = {'optimizer.warmup_steps': 0, 'num_steps': 150}
  rates = [1e-3, 3e-3, 1e-2]
  return {
    'claim': 'Without warm-up, pre-norm trains at learning rates where post-norm does not; DeepNorm mends post-norm.',
    'source': 'Xiong et al. 2020, arXiv 2002.04745; Wang et al. 2022, arXiv 2203.00555',
    'experiment': 'pretrain',
    'config': 'configs/pretrain/lab.py',
    'points': product(seeds(5), param('optimizer.learning_rate', rates), [PRE, POST, DEEP], [{**shape, **recipe}]),
    'baseline': PRE,
    'metrics': {'validation_loss': 'validation loss (nats per token)'},
    'x': 'optimizer.learning_rate',
    'expect': [
      {'metric': 'validation_loss', 'of': {**better, 'optimizer.learning_rate': rate}, 'than': POST, 'is': 'lower'}
      for better in (PRE, DEEP)
      for rate in rates[1:]
    ],
  }
