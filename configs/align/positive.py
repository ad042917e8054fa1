"""From text to an aligned model in one command: positive continuations, in less than twenty minutes on two cores.

Paper     Ouyang et al. 2022, InstructGPT, in small: demonstrations, rankings by people, PPO
Command   make align
Result    share of positive continuations 37%, 39% and 91% after pretrain, instruct and policy; eighteen minutes
"""

POLICY = {'num_rollouts': 40, 'eval_every': 10, 'evaluation.prompts': 256}


def get_road():
  """Stages in their order: by the name of an experiment its config, and what of it is replaced.

  Each is in a folder of its name beside the others; a field that names another stage as '{NAME}' gets its folder.
  """
  return {
    'title': 'From text to positive continuations',
    'stages': {
      'pretrain': {'config': 'configs/pretrain/snippets.py', 'fields': {'num_steps': 550}},
      'instruct': {'config': 'configs/instruct/snippets.py', 'fields': {'init_from': '{pretrain}', 'epochs': 1.0}},
      'reward': {'config': 'configs/reward/vader.py', 'fields': {'init_from': '{instruct}', 'data.limit': 2400}},
      'policy': {
        'config': 'configs/policy/positive.py',
        'fields': {'init_from': '{instruct}', 'reward.model': '{reward}', **POLICY},
      },
    },
    'compared': ('pretrain', 'instruct', 'policy'),
    'judged_prompts': 256,
    'shown_prompts': 12,
  }
