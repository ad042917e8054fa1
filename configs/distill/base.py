"""Every field of a run in which a model learns from another, with what it is when a config says nothing."""

from ml_collections import ConfigDict

from configs.medusa import base as medusa
from configs.pretrain import base as pretrain


def get_config() -> ConfigDict:
  """A run that is complete but for its models and data."""
  config = pretrain.get_config()
  for name in ('init_from', 'batch_ramp', 'measure', 'sample', 'loss'):
    del config[name]
  del config.data.tokenizer  # the teacher's
  config.update({
    'teacher': '',  # the model that is learned from: what --model takes
    'teacher_dtype': 'float32',  # of its computation
    'generate': medusa.get_config().generate,  # what the teacher writes itself, to learn from instead of the text
    'loss': {
      'kind': 'forward_kl',  # of the teacher's distribution; 'reverse_kl'; 'sequence': of what it wrote alone
      'top_k': 32,  # its likeliest tokens, the others counting as one
      'temperature': 1.0,  # of both distributions
      'mix': 0.0,  # share of the loss that is the next token's
      'chunk': 64,  # places of a row whose logits exist at once; 0: all
    },
  })  # fmt: skip
  config.eval_batch_size = 8
  config.eval_rows = 64
  return config
