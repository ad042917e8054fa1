"""How much of a text is blanked in pretraining, and how well blanks of held-out text are filled then.

Command   python -m experiments.sweep --sweep=configs/sweeps/blank_ratio.py --workdir=runs/blank_ratio --jobs=2
"""

from configs.sweeps.points import param, product, seeds

RATIOS = [0.05, 0.1, 0.15, 0.25, 0.4]
GLM = {
  'model.attention': 'dense(causal | prefix)',
  'model.rotation': 'rotary_2d',
  'infilling.word': 1.0,
  'optimizer.name': 'muon',  # by AdamW, and with learned places, so few steps teach hardly more than frequencies
  'optimizer.learning_rate': 1e-2,
  'num_steps': 400,
  'eval_rows': 128,
}


def get_sweep():
  loss = 'cloze_loss'
  ratio = lambda value: {'infilling.ratio': value}
  return {
    'claim': 'Blanking 15% of a text is best: of less there is less to learn, of more there is less to learn from.',
    'source': 'Du et al. 2022, arXiv 2103.10360, section 2.1',
    'experiment': 'pretrain',
    'config': 'configs/pretrain/lab.py',
    'points': product(seeds(3), param('infilling.ratio', RATIOS), [GLM]),
    'baseline': ratio(0.15),
    'metrics': {
      loss: 'loss of single blanks (nats per token)',
      'cloze_loss_given_length': 'loss, told their length (nats per token)',
      'cloze_accuracy': 'tokens of single blanks that are the likeliest ones',
    },
    'x': 'infilling.ratio',
    'expect': [
      {'metric': loss, 'of': ratio(value), 'than': ratio(0.15), 'is': 'higher'} for value in RATIOS if value != 0.15
    ],
  }
