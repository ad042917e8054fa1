"""Flags of speculation, and the drafts they name."""

import dataclasses
from typing import Any

from absl import flags

from experiments import language, model_flags
from experiments.heads import load_medusa
from gpt_jax.data.rows import tokenize
from gpt_jax.data.sources import documents
from gpt_jax.decoding.acceptance import Rejection, Typical
from gpt_jax.decoding.drafts import Alone, Draft, ModelDraft, PromptLookup, count_bigrams, first_layers
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.decoding.steps import unstacked
from gpt_jax.decoding.tree import chain
from gpt_jax.types import UserError

DRAFT = flags.DEFINE_string(
  'draft', None, 'who proposes tokens, so that several are read at once and the text stays as it was: lookup (the text '
  'itself), layers:N (the first N of the model), bigrams:SOURCE (counted from a source of text), or a smaller model of '
  'the same tokenizer, named as --model is'
)  # fmt: skip
NUM_SPECULATIVE_TOKENS = flags.DEFINE_integer(
  'num_speculative_tokens', None, 'of --draft: tokens to propose a step; not given: 10 of lookup, 3 of others',
  lower_bound=1,
)  # fmt: skip
MEDUSA = flags.DEFINE_string(
  'medusa', None, 'the folder of a run of experiments.medusa: its heads propose, in its tree'
)
TYPICAL = flags.DEFINE_float(
  'typical', None, 'of --medusa: keep tokens more likely than min(this, its root times exp(-entropy)); paper: 0.09; '
  'the text has another distribution then'
)  # fmt: skip


def load(trained: language.Trained, sampling: Sampling) -> dict[str, Any]:
  """The arguments of decoding that the flags say: a draft that fits the model, and what is accepted of it.

  Raises:
    UserError: flags that contradict one another, or a draft that there is none of, or that does not fit.
  """
  if DRAFT.value and MEDUSA.value:
    raise UserError('--draft and --medusa both propose tokens: give one of them')
  if TYPICAL.value is not None and not MEDUSA.value:
    raise UserError('--typical says what is kept of the guesses of --medusa: give both')
  if TYPICAL.value is not None:
    acceptance: Rejection | Typical = Typical(TYPICAL.value, TYPICAL.value**0.5 if TYPICAL.value > 0 else 0)
  else:
    acceptance = Rejection()
  # In a tree, drawn text would not be distributed as the model's own.
  branching = sampling.greedy or TYPICAL.value is not None
  return {'draft': _draft(trained, branching), 'acceptance': acceptance}


def _draft(trained: language.Trained, branching: bool) -> Draft:
  if MEDUSA.value:
    draft = load_medusa(MEDUSA.value, trained.model.config, model_flags.place())
    return draft if branching else dataclasses.replace(draft, tree=chain(draft.heads.num_heads))
  if not DRAFT.value:
    return Alone()
  kind, _, rest = DRAFT.value.partition(':')
  length = NUM_SPECULATIVE_TOKENS.value or (10 if kind == 'lookup' else 3)
  if DRAFT.value == 'lookup':
    return PromptLookup(length)
  if kind == 'layers':
    if not rest.isdecimal():
      raise UserError(f'--draft={DRAFT.value}: layers takes a number, as in layers:6')
    return first_layers(trained.model, trained.params, int(rest), length)
  if kind == 'bigrams':
    stream = tokenize(documents(rest, 'train', 0.0), trained.tokenizer)
    return count_bigrams(stream.tokens, trained.model.config.vocab_size, length=length)
  smaller = language.load(DRAFT.value, model_flags.place(), stacked=False, dtype=trained.model.config.dtype)
  probe = 'Speculation needs 1 tokenizer, not 2: the same ids for the same text.\n\tÄhm…'
  if smaller.tokenizer.encode(probe).tolist() != trained.tokenizer.encode(probe).tolist():
    raise UserError(f'--draft={DRAFT.value} has another tokenizer than the model: use a draft that shares it')
  model, params = unstacked(smaller.model, smaller.params)
  return ModelDraft(params, model, length)
