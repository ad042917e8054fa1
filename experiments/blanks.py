"""Blank infilling as a config describes it: the rows that are learned from, and what is measured of them."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from experiments import language, reading
from gpt_jax.data.blanks import KINDS, Blanks
from gpt_jax.data.formats import demonstrations, teach
from gpt_jax.data.infilling import Asked, Blanked, LeftToRight, text_context
from gpt_jax.data.marks import NAMES, Marks, marks_of, sentence_ends
from gpt_jax.data.rows import Dataset, Rows
from gpt_jax.data.sources import records
from gpt_jax.data.tokenizers import Tokenizer
from gpt_jax.decoding.infilling import Filled, fill
from gpt_jax.evaluation.cloze import filling
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.positions import Learned2D, Rotary2D
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.sharding import Placement
from gpt_jax.types import Params, UserError


def fills_blanks(config: Mapping[str, Any]) -> bool:
  """Whether a run learns to fill blanks, and not to write from left to right."""
  return any(config.get('infilling', {}).get(kind) for kind in KINDS)


def of_config(config: Mapping[str, Any], model: TransformerConfig) -> Blanks | None:
  """What config.infilling blanks; None: nothing, text is read from left to right."""
  if not fills_blanks(config):
    return None
  fields = dict(config['infilling'])
  for name in ('instructions', 'instructions_share'):
    fields.pop(name)
  if config['data']['separate_documents']:
    raise UserError('config.data.separate_documents does not go with config.infilling: texts are windows of the data')
  if not any(pattern.mask.looks_ahead for pattern in model.attention):
    raise UserError("config.model.attention reads one way: blanks need a prefix, such as 'dense(causal | prefix)'")
  return Blanks(**fields, running=runs_on(model))


def runs_on(model: TransformerConfig) -> bool:
  """Whether the rest of a text stands at the places that follow: in a model that knows no places in a blank."""
  return not isinstance(model.positions, Learned2D) and not isinstance(model.rotation, Rotary2D)


def marks(tokenizer: Tokenizer) -> Marks:
  """The tokens for blanks.

  Raises:
    UserError: there are none.
  """
  found = marks_of(tokenizer)
  if found is None:
    names = ', '.join(name for names in NAMES.values() for name in names[:1])
    raise UserError(f'the tokenizer of this model has no tokens for blanks ({names})')
  return found


def training(config: Mapping[str, Any], tokenizer: Tokenizer, how: Blanks | None) -> tuple[list[Dataset], list[float]]:
  """What is learned from, and the weight of each in the mixture: rows of text, blanked or not, and instructions."""
  weights = reading.weights_of(config['data'])
  if how is None:
    return list(reading.rows(config, tokenizer, 'train', drop_remainder=True)), weights
  rows: list[Dataset] = list(blanked(config, tokenizer, how, 'train'))
  name, share = config['infilling']['instructions'], config['infilling']['instructions_share']
  if not name:
    return rows, weights
  shown = demonstrations(records(name, 'train', config['data']['held_out']))
  asked = Asked([teach(tokenizer, one) for one in shown], marks(tokenizer), config['context'])
  print(f'instructions: {len(asked):,} of {name}; {asked.dropped:,} do not fit, and are left out')
  return [*rows, asked], [*(weight * (1 - share) / sum(weights) for weight in weights), share]


def blanked(config: Mapping[str, Any], tokenizer: Tokenizer, how: Blanks, split: str) -> list[Blanked]:
  """Rows with blanks of a split of each source; of held-out text those of config.eval_rows rows."""
  context = config['context']
  num_tokens = config['eval_rows'] * context if split == 'validation' else 0
  rows = reading.rows(
    config, tokenizer, split, drop_remainder=True, num_tokens=num_tokens, context=text_context(context)
  )
  ends, of = sentence_ends(tokenizer), marks(tokenizer)
  return [Blanked(text, how, of, ends, context, (config['seed'], number)) for number, text in enumerate(rows)]


def cloze(
  config: Mapping[str, Any],
  tokenizer: Tokenizer,
  how: Blanks,
  model: LanguageModel,
  placement: Placement | None = None,
) -> reading.Evaluation:
  """How well one blank in each held-out text is filled, a span of words: the same whatever is blanked in training."""
  some = 0.5 / config['context']  # of a text less than a token, so that one span is enough
  alone = dataclasses.replace(how, word=1.0, sentence=0.0, document=0.0, ratio=some, least_ratio=None, windows=1)
  rows, end = blanked(config, tokenizer, alone, 'validation'), marks(tokenizer).end

  def evaluation(params: Params) -> dict[str, float]:
    found = filling(model, params, reading.placed(rows, config['eval_batch_size'], placement), end)
    names = ('loss', 'loss_given_length', 'accuracy', 'exact_match_with_end')
    return {name: getattr(found, name) for name in names}

  return evaluation


def as_written(
  config: Mapping[str, Any], tokenizer: Tokenizer, model: TransformerConfig, split: str, *, context: int, **some: Any
) -> Sequence[Rows] | Sequence[LeftToRight]:
  """Rows of text that take `context` places, laid out as the model writes: all in one blank, if it fills blanks.

  `some` are other arguments of `reading.rows`.
  """
  of = language.marks_read(tokenizer, model)
  if of is None:
    return reading.rows(config, tokenizer, split, context=context, drop_remainder=False, **some)
  rows = reading.rows(config, tokenizer, split, context=text_context(context), drop_remainder=False, **some)
  return [LeftToRight(text, of, runs_on(model)) for text in rows]


def fill_texts(
  model: LanguageModel,
  params: Params,
  tokenizer: Tokenizer,
  texts: Sequence[str],
  **how: Any,
) -> list[Filled]:
  """The texts with every [MASK], [sMASK] and [gMASK] filled; one without any is written on."""
  of = marks(tokenizer)
  ids = [tokenizer.encode_special(text).tolist() for text in texts]
  ids = [text if set(text) & set(of.masks) else [*text, of.document] for text in ids]
  return fill(model, params, ids, of, running=runs_on(model.config), **how)
