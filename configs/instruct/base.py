"""Every field of a run that learns from demonstrations, with what it is when a config says nothing.

Paper     Ouyang et al. 2022, InstructGPT, appendix C.1: 16 epochs, residual dropout 0.2, batch 32, Adam .9/.95, cosine
          to 10%, no warm-up, learning rate 9.65e-6 (of its 1.3B)
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.pretrain import base as pretrain


def get_config() -> ConfigDict:
  """A run that is complete but for its model and data."""
  return ConfigDict({
    'init_from': '',  # the language model that is taught: what --model takes
    'model': {  # what of it is replaced; None: nothing
      'embedding_dropout': placeholder(float),
      'attention_dropout': placeholder(float),
      'residual_dropout': 0.2,
      'dtype': placeholder(str),  # of computation
      'remat': placeholder(str),
      'attention_kernel': placeholder(str),
    },
    'lora': '',  # 'lora(rank=8, alpha=16, dropout=0.0, targets="query|value")': learns alone; '': the whole model
    'epochs': 16.0,
    'batch_size': 32,  # rows of `context` tokens
    'context': 512,  # tokens of a row; longer texts are cut
    'microbatches': 1,
    'seed': 0,
    'data': {
      'source': '',  # asset:NAME, file:PATH.jsonl, tfds:NAME or hf:NAME; several by commas
      'held_out': 0.1,  # fraction, where a source has no validation split of its own
      'packed': True,  # as many texts in a row as fit, which do not see one another
      'chat': False,  # True: a prompt that is a text becomes the user's turn of a conversation
      'templates': (),  # such as 'Question: {}\\nAnswer:', taken in turn; the prompt stands for {}
      'cap': 0,  # the first demonstrations of each source alone (FLAN: 30,000); 0: all
    },
    'pretraining': {  # text mixed in, as it was pretrained on
      'share': 0.0,  # of the rows of a batch (InstructGPT's start of PPO: 0.1)
      'source': '',
      'held_out': 0.1,
    },
    'loss': {
      'chunk': 0,  # places of a row whose logits exist at once; 0: all
    },
    'optimizer': {**pretrain.get_config().optimizer, 'learning_rate': 9.65e-6, 'weight_decay': 0.0},
    'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1, 'sequence': 1},
    'log_every': 10,
    'eval_every': 0,  # 0: at the start and the end only
    'eval_batch_size': 32,
    # The checkpoint, of those evaluated, that a finished run is read as; 'best': of least validation loss; 'reward':
    # whose answers to held-out prompts a reward model likes best, as InstructGPT chose.
    'checkpoint': 'last',
    'reward': {
      'model': '',  # a finished run of experiments.reward, of the same tokenizer
      'prompts': 256,
      'prompt_tokens': 64,  # of a prompt at most; longer ones are left out
      'given': 0,  # tokens of the answer that stand before what is written
      'max_new_tokens': 24,
      'temperature': 1.0,
    },
    'checkpoint_every': 0,
    'keep_checkpoints': 1,
  })  # fmt: skip
