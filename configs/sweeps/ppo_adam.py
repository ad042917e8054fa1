"""Where Adam's epsilon is added, and how far two updates of PPO then go.

Needs     runs/instruct and runs/reward, of configs/instruct/snippets.py and configs/reward/vader.py
Command   python -m experiments.sweep --sweep=configs/sweeps/ppo_adam.py --workdir=runs/ppo_adam --jobs=2
"""

from configs.sweeps.points import param, product, seeds

HAT = 'optimizer.eps_hat'

# As lm-human-preferences, a rollout is one minibatch; what the third update measures is the policy after two.
TWO_UPDATES = {
  'num_rollouts': 1, 'epochs': 3, 'minibatches': 1, 'eval_every': 0, 'optimizer.eps': 1e-5, 'optimizer.b2': 0.999,
  'optimizer.warmup_steps': 0, 'optimizer.learning_rate': 1e-5,
}  # fmt: skip


def get_sweep():
  return {
    'claim': "With TensorFlow 1's Adam, which adds epsilon before the bias of the second moment is corrected, the "
    "first updates of PPO change the policy several times less than with the paper's.",
    'source': 'Huang et al. 2023, The N Implementation Details of RLHF with PPO: after two epochs an approximate KL of '
    '.000372 with TensorFlow and .00237 with PyTorch, 6.4 times as much',
    'experiment': 'policy',
    'config': 'configs/policy/positive.py',
    'points': product(seeds(5), [TWO_UPDATES], param(HAT, [False, True])),
    'baseline': {HAT: False},
    'metrics': {
      'approximate_kl': 'approximate KL after two updates (nats a token)',
      'clip_fraction': 'ratios that are clipped',
    },
    'curves': {'held_out_kl': 'KL to the SFT model (nats a response)'},
    'expect': [{'metric': 'approximate_kl', 'of': {HAT: True}, 'than': {HAT: False}, 'is': 'lower'}],
  }
