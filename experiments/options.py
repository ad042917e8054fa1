"""Flags of all experiments that use a model: which one, and how it writes."""

from typing import Any

from absl import flags

from experiments import command, language
from gpt_jax.decoding.sampling import Sampling

MODEL = flags.DEFINE_string('model', None, language.MODEL)
DTYPE = flags.DEFINE_enum('dtype', None, ['float32', 'bfloat16'], "of computation; not given: the run's, or float32")


def load(**changed: Any) -> language.Trained:
  """The model that the flags name; flags out of range are refused before anything is fetched or read."""
  sampling()
  dtype = {} if DTYPE.value is None else {'dtype': DTYPE.value}
  return language.load(command.required(MODEL), **dtype, **changed)


MAX_NEW_TOKENS = flags.DEFINE_integer('max_new_tokens', 200, 'tokens to write at most')
TEMPERATURE = flags.DEFINE_float('temperature', 0.8, '0: always the most likely token')
TOP_K = flags.DEFINE_integer('top_k', None, 'draw from the k most likely tokens')
TOP_P = flags.DEFINE_float('top_p', None, 'draw from the most likely tokens that together have this probability')
STOP = flags.DEFINE_multi_string('stop', [], 'end after this string; may be given again')
SEED = flags.DEFINE_integer('seed', 0, 'of the draws')


def sampling() -> Sampling:
  """How tokens are drawn."""
  return Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value)


def writing(trained: language.Trained) -> dict[str, Any]:
  """The arguments of decoding that the flags and the vocabulary give."""
  return {
    'max_new_tokens': MAX_NEW_TOKENS.value,
    'sampling': sampling(),
    'stop_ids': trained.tokenizer.conventions.ends,
    'stop': STOP.value,
    'decode': trained.decode,
  }
