"""PPO-ptx: what alignment costs on text as in pretraining, by how much of that is learned from besides.

Needs     runs/instruct and runs/reward, of configs/instruct/snippets.py and configs/reward/vader.py
Command   python -m experiments.sweep --sweep=configs/sweeps/ppo_ptx.py --workdir=runs/ppo_ptx --jobs=2
"""

from configs.sweeps.points import param, product, seeds

GAMMA = 'pretraining.coefficient'


def get_sweep():
  share = 'held_out_positive_share'
  return {
    'claim': 'The loss on pretraining text rises in PPO; mixing in gradients of pretraining keeps it down, and the '
    'reward still rises.',
    'source': 'Ouyang et al. 2022, section 3.5 and figure 33',
    'experiment': 'policy',
    'config': 'configs/policy/positive.py',
    'points': product(
      seeds(2), [{'num_rollouts': 25, 'eval_every': 5, 'pretraining.per_episode': 0.5}], param(GAMMA, [0.0, 0.1, 1.0])
    ),
    'baseline': {GAMMA: 0.0},
    'metrics': {
      'pretraining_loss': 'loss on held-out novels (nats per token)',
      share: 'share of positive continuations',
      'held_out_reward': 'reward',
      'held_out_kl': 'KL to the SFT model (nats a response)',
      'held_out_distinct_2': 'distinct bigrams over all',
    },
    'curves': {
      'pretraining_loss': 'loss on held-out novels (nats per token)',
      share: 'share of positive continuations',
    },
    'expect': [
      {'metric': 'pretraining_loss', 'of': {GAMMA: gamma}, 'than': {GAMMA: 0.0}, 'is': 'lower'} for gamma in (0.1, 1.0)
    ],
    'threads': 1,
  }
