"""Positive continuations by PPO, five seeds; and how far it goes as the KL to the model it begins as costs less.

Needs     runs/instruct and runs/reward, of configs/instruct/snippets.py and configs/reward/vader.py
Command   python -m experiments.sweep --sweep=configs/sweeps/ppo_positive.py --workdir=runs/ppo_positive --jobs=2
"""

from configs.sweeps.points import chain, param, product, seeds

SFT = {'optimizer.learning_rate': 0.0, 'num_rollouts': 1, 'kl.coefficient': 0.1}
PPO = {'optimizer.learning_rate': 1e-4, 'num_rollouts': 40}


def get_sweep():
  at = lambda coefficient: {**PPO, 'kl.coefficient': coefficient}
  share = 'held_out_positive_share'
  return {
    'claim': 'PPO on a reward model of human ratings makes continuations positive by a judge that nothing learned '
    'from; the less the KL costs, the farther it goes, at the price of the text.',
    'source': 'Ziegler et al. 2019, section 3.1.1, with the recipe of Ouyang et al. 2022',
    'experiment': 'policy',
    'config': 'configs/policy/positive.py',
    'points': chain(
      product(seeds(5), [SFT, at(0.1)]), product(seeds(2), [PPO], param('kl.coefficient', [0.02, 0.005, 0.0]))
    ),
    'baseline': SFT,
    'metrics': {
      share: "share of positive continuations (VADER's compound score above 0.05)",
      'held_out_judge': 'compound score',
      'held_out_reward': 'reward',
      'held_out_kl': 'KL to the SFT model (nats a response)',
      'held_out_reference_perplexity': 'perplexity under the SFT model',
      'held_out_distinct_2': 'distinct bigrams over all',
      'held_out_length': 'length (tokens)',
      'pretraining_loss': 'loss on novels (nats per token)',
      'reward_pair_accuracy': 'reward model: held-out comparisons right',
    },
    'frontier': ('held_out_kl', 'held_out_reward'),
    'curves': {share: 'share of positive continuations', 'held_out_kl': 'KL (nats a response)'},
    'summary': {
      'sft_positive_share': {'metric': share, 'of': SFT},
      'ppo_positive_share': {'metric': share, 'of': at(0.1)},
      'reward_pair_accuracy': {'metric': 'reward_pair_accuracy', 'of': at(0.1)},
    },
    'expect': [
      {'metric': share, 'of': at(0.1), 'than': SFT, 'is': 'higher'},
      {'metric': 'held_out_kl', 'of': at(0.0), 'than': at(0.1), 'is': 'higher'},
      {'metric': 'held_out_distinct_2', 'of': at(0.0), 'than': at(0.1), 'is': 'lower'},
    ],
    'threads': 1,
  }
