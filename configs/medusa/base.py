"""Every field of a run that trains Medusa's heads, with what it is when a config says nothing."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.pretrain import base as pretrain


def get_config() -> ConfigDict:
  """A run that is complete but for its model and data."""
  return ConfigDict({
    'base': '',  # the model that the heads are for, which stays as it is: what --model takes
    'quantization': '',  # of its linear layers: int8, int4, int8(group=64), ...; '': as they come
    'init_from': '',  # a run of such heads, which these begin as; '': as the model itself
    'num_heads': 4,
    'shared': False,  # True: all heads end in the model's own unembedding, and only W1 is learned
    'draft_vocab_size': 0,  # tokens that heads tell apart, the most frequent of what they learn from; 0: all
    'dtype': 'float32',  # of computation, the model's and the heads'
    'num_steps': 1000,
    'batch_size': 8,  # rows of `context` tokens, or answers
    'context': 256,  # tokens, of rows of text
    'microbatches': 1,
    'seed': 0,
    'data': {
      'source': '',  # asset:NAME, file:PATH, tfds:NAME or hf:NAME; several by commas
      'weights': placeholder(tuple),  # of several sources; None: all alike
      'held_out': 0.1,  # fraction, where a source has no validation split of its own
      'separate_documents': False,  # True: documents packed in one row do not see each other
    },
    'generate': {  # what the model writes itself after prompts from data.source, to learn from instead of the text
      'rows': 0,  # answers to write; 0: the text is learned from
      'held_out_rows': 64,
      'prompts': 'text',  # pieces of the text, gone on from; 'chat': requests made of its lines
      'requests': ('{}',),  # of 'chat', taken in turn; the line stands for {}
      'prompt_tokens': 32,
      'max_new_tokens': 128,
      'temperature': 0.0,
      'batch_size': 16,
    },
    'loss': {
      'decay': 0.8,  # head k counts decay^k
      'chunk': 64,  # places of a row whose logits exist at once; 0: all
    },
    'joint': {  # the model learns along with its heads (Medusa-2)
      'weight': 0.0,  # of the heads' loss beside the model's own; 0: the model stays as it is (Medusa-1)
      'lora': 'lora(rank=32, alpha=16, dropout=0.05)',  # what learns in the model
      'rate': 0.25,  # its learning rate over that of the heads
    },
    'tree': {
      'num_nodes': 64,  # the root counted
    },
    'optimizer': {
      **pretrain.get_config().optimizer,
      'learning_rate': 2e-3,
      'warmup_steps': 40,
      'end_fraction': 0.0,
      'b2': 0.999,
      'weight_decay': 0.0,
    },
    'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1, 'sequence': 1},
    'log_every': 10,
    'eval_every': 0,  # 0: at the start and the end only
    'eval_batch_size': 8,
    'eval_rows': 64,  # the first rows of each held-out source that are evaluated; 0: all
    'checkpoint_every': 0,
    'keep_checkpoints': 1,
  })  # fmt: skip
