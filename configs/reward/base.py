"""Every field of a run that learns what people prefer, with what it is when a config says nothing."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.pretrain import base as pretrain


def get_config() -> ConfigDict:
  """A run that is complete but for its model and data."""
  return ConfigDict({
    'init_from': '',  # the language model that it begins as: what --model takes
    'model': {  # what of it is replaced; None: nothing
      'embedding_dropout': placeholder(float),
      'attention_dropout': placeholder(float),
      'residual_dropout': placeholder(float),
      'dtype': placeholder(str),  # of computation
      'remat': placeholder(str),
      'attention_kernel': placeholder(str),
    },
    'epochs': 1.0,
    'batch_size': 64,  # rankings; with data.form = 'pairs', pairs
    'context': 128,  # tokens of a text; longer ones are cut
    'microbatches': 1,
    'seed': 0,
    'data': {
      'source': '',  # asset:NAME, file:PATH.jsonl, tfds:NAME or hf:NAME; several by commas
      'held_out': 0.1,  # fraction, where a source has no validation split of its own
      'form': 'grouped',  # all comparisons of a ranking in one batch; 'pairs': each by itself, shuffled
      'least': 4,  # texts of a ranking, where the source rates texts one by one
      'most': 9,
      'limit': 0,  # the first rankings of each split alone; 0: all
    },
    # Of the rewards of a finished run: 'best', the best of held-out rankings have mean 0 (InstructGPT); 'all', all of
    # their texts have mean 0 and deviation 1 (lm-human-preferences).
    'normalized': 'best',
    'loss': {
      'margin': 0.0,  # that rewards are to be apart for each point of score
    },
    'optimizer': {**pretrain.get_config().optimizer, 'learning_rate': 9e-6, 'weight_decay': 0.0},
    'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1, 'sequence': 1},
    'log_every': 10,
    'eval_every': 0,  # 0: at the start and the end only
    'eval_batch_size': 32,
    'checkpoint_every': 0,
    'keep_checkpoints': 1,
  })  # fmt: skip
