"""Every field of a run of DPO, with what it is when a config says nothing.

Paper     Rafailov et al. 2023, appendix B: beta 0.1, batch 64, learning rate 1e-6, 150 steps of warm-up
"""

from ml_collections import ConfigDict

from configs.reward import base as reward


def get_config() -> ConfigDict:
  """A run that is complete but for its model and data."""
  config = reward.get_config()
  for name in ('embedding_dropout', 'attention_dropout', 'residual_dropout'):
    del config.model[name]
  del config.normalized
  config.data.form = 'pairs'
  config.loss = {
    'form': 'sigmoid',  # 'ipo'
    'by_token': False,  # True: log-likelihoods a token, as IPO's authors and TRL have them
    'beta': 0.1,
    'label_smoothing': 0.0,  # the share of preferences taken to be the wrong way round (conservative DPO)
    'chunk': 0,  # places of a row whose logits exist at once; 0: all
  }
  config.optimizer.update({'learning_rate': 1e-6, 'warmup_steps': 150, 'schedule': 'constant'})
  return config
