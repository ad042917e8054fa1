"""Flags of all experiments that let a model write: how much, how it is drawn, and what ends it."""

from typing import Any

from absl import flags

from experiments import drafts, language, model_flags
from gpt_jax.decoding.sampling import RepetitionPenalty, Sampling
from gpt_jax.types import UserError

MAX_NEW_TOKENS = flags.DEFINE_integer('max_new_tokens', 200, 'tokens to write at most')
TEMPERATURE = flags.DEFINE_float('temperature', 0.8, '0: always the most likely token')
TOP_K = flags.DEFINE_integer('top_k', None, 'draw from the k most likely tokens')
TOP_P = flags.DEFINE_float('top_p', None, 'draw from the most likely tokens that together have this probability')
MIN_P = flags.DEFINE_float('min_p', None, 'draw from the tokens at least so many times as likely as the likeliest')
REPETITION_PENALTY = flags.DEFINE_float(
  'repetition_penalty', 1.0, 'divides the logits of tokens that the text has already; 1: none'
)
STOP = flags.DEFINE_multi_string('stop', [], 'end after this string; may be given again')
SEED = flags.DEFINE_integer('seed', 0, 'of the draws')


def load() -> tuple[language.Trained, dict[str, Any]]:
  """The model that the flags name, its layers apart, and the arguments of decoding; flags are checked before."""
  penalty = REPETITION_PENALTY.value
  if not penalty > 0:
    raise UserError(f'repetition_penalty = {penalty} must be positive; 1 changes nothing')
  processors = () if penalty == 1 else (RepetitionPenalty(penalty),)
  sampling = Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value, MIN_P.value, processors)
  trained = model_flags.load(stacked=False)
  return trained, {
    'max_new_tokens': MAX_NEW_TOKENS.value,
    'sampling': sampling,
    'stop_ids': trained.tokenizer.conventions.ends,
    'stop': STOP.value,
    'decode': trained.decode,
    **drafts.load(trained, sampling),
  }
