"""Every field of a pretraining run, with what it is when a config says nothing."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
  """A run that is complete but for its model and data."""
  return ConfigDict({
    'num_steps': 1000,
    'batch_size': 32,  # rows of `context` tokens
    'context': 256,  # tokens
    'microbatches': 1,
    'seed': 0,
    'init_from': '',  # a run or other weights (what --model takes) that training starts from, in place of the family
    'model': {
      'family': 'gpt2_small',
      # What of the family is replaced; None: nothing. Parts are written as names, such as 'rotary(theta=1e5)'.
      'vocab_size': placeholder(int),  # None: the tokenizer's
      'num_layers': placeholder(int),
      'model_dim': placeholder(int),
      'num_heads': placeholder(int),
      'num_kv_heads': placeholder(int),
      'head_dim': placeholder(int),
      'mlp': placeholder(str),  # 'gelu(3072)', 'swiglu(1536)', ...
      'residual': placeholder(str),  # 'pre', 'post(alpha=2.0)', 'post(alpha=deepnet)', 'parallel'
      'norm': placeholder(str),  # 'layer', 'rms'
      'positions': placeholder(str),  # 'none', 'learned(1024)', 'learned_2d(1024)'
      'rotation': placeholder(str),  # 'none', 'rotary(fraction=0.5)', 'rotary(scaling=llama3)'
      'score_bias': placeholder(str),  # 'none', 'alibi', 'falcon_alibi'
      'attention': placeholder(str),  # 'dense', 'dense, banded(128)', 'dense(causal | prefix)'
      'init': placeholder(str),  # 'normal(0.02)', 'scaled_normal', 'xavier(gain=0.1)'
      'use_bias': placeholder(bool),
      'qkv_bias': placeholder(bool),
      'tie_embeddings': placeholder(bool),
      'logit_softcap': placeholder(float),
      'embedding_gradient': placeholder(float),  # the part of it that token embeddings get of the layers'
      'embedding_dropout': placeholder(float),
      'attention_dropout': placeholder(float),
      'residual_dropout': placeholder(float),
      'dtype': placeholder(str),  # of computation: 'float32', 'bfloat16'
      'remat': placeholder(str),  # 'none', 'dots', 'full'
      'attention_kernel': placeholder(str),  # 'auto', 'plain', 'chunked', 'cudnn', 'splash'
      'stacked': placeholder(bool),
    },
    'data': {
      'source': '',  # asset:NAME, file:PATH, tfds:NAME or hf:NAME; several by commas
      'weights': placeholder(tuple),  # of several sources; None: all alike
      'tokenizer': 'gpt2',  # bytes, chars, gpt2, gpt1:FOLDER, bpe:SIZE, json:FILE, sentencepiece:FILE
      'held_out': 0.1,  # fraction, where a source has no validation split of its own
      'separate_documents': False,  # True: documents packed in one row do not see each other
    },
    'infilling': {  # blanks that are filled (GLM) in place of text read from left to right
      'word': 0.0,  # shares of rows whose blanks are words, sentences, and the rest of the text; all 0: no blanks
      'sentence': 0.0,
      'document': 0.0,
      'ratio': 0.15,  # of a text's tokens that are blanked by words or sentences
      'least_ratio': placeholder(float),  # if given, the ratio of a text is uniform from this to `ratio`
      'mean_length': 3.0,  # tokens of a span of words
      'longest': 39,
      'least_document': 0.5,  # the least part of a text that its blanked rest is
      'windows': 1,  # texts side by side in a row, of words or sentences
      'instructions': '',  # a source of prompts and answers, which stand in a blank
      'instructions_share': 0.05,  # of rows
    },
    'loss': {
      'z_loss': 0.0,
      'chunk': 0,  # places of a row whose logits exist at once; 0: all
    },
    'optimizer': {
      'name': 'adamw',  # adafactor, lion, muon, sgd
      'learning_rate': 3e-4,
      'warmup_steps': 0,
      'schedule': 'cosine',  # linear, constant, wsd, inverse_sqrt
      'decay_steps': 0,  # 0: num_steps
      'end_fraction': 0.1,
      'cooldown_fraction': 0.2,  # of wsd
      'b1': 0.9,
      'b2': 0.95,
      'eps': 1e-8,
      'eps_hat': False,  # True: added before the second moment's bias is corrected, as in TensorFlow 1
      'momentum': 0.95,  # of muon and sgd
      'weight_decay': 0.1,
      'decay_mask': r'(kernel|embedding|table)$',  # regex over parameter paths
      'clip_norm': 1.0,
      'ema': 0.0,
      'rates': (),  # pairs of a regex over parameter paths and a factor of the learning rate; 0: frozen
    },
    'batch_ramp': {
      'first_rows': 0,  # 0: no ramp
      'ramp_tokens': 0,
    },
    'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1, 'sequence': 1},
    'log_every': 10,
    'eval_every': 0,  # 0: at the start and the end only
    'eval_batch_size': 32,
    'eval_rows': 0,  # the first rows of each held-out source that are evaluated; 0: all
    'measure': {  # of the trained model, in result.json
      'contexts': (),  # validation loss of rows of these lengths: validation_loss_at_LENGTH
      'decoding_rows': 0,  # speed of decoding so many rows at once, and bytes of cache; 0: not measured
      'decoding_tokens': 512,
    },
    'checkpoint_every': 0,
    'keep_checkpoints': 2,
    'sample': {
      'prompt': '',  # '': no samples
      'max_new_tokens': 200,
      'temperature': 0.8,
    },
  })  # fmt: skip
