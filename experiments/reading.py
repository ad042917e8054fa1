"""Text as a config names it: rows of its sources, and how well a model predicts those held out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from gpt_jax.data.infilling import LeftToRight
from gpt_jax.data.rows import Dataset, Rows, head, in_order, tokenize
from gpt_jax.data.sources import documents
from gpt_jax.data.tokenizers import Tokenizer
from gpt_jax.evaluation.perplexity import evaluate
from gpt_jax.models.heads import LanguageModel
from gpt_jax.objectives.likelihood import next_token_loss
from gpt_jax.sharding import Placement
from gpt_jax.types import Batch, Params, UserError


def sources_of(data: Mapping[str, Any]) -> list[str]:
  """The names of config.data.source."""
  names = [name.strip() for name in data['source'].split(',') if name.strip()]
  if not names:
    raise UserError('config.data.source is empty; give asset:NAME, file:PATH, tfds:NAME or hf:NAME')
  return names


def rows(
  config: Mapping[str, Any],
  tokenizer: Tokenizer,
  split: str,
  *,
  drop_remainder: bool,
  num_tokens: int = 0,
  context: int | None = None,
  stride: int | None = None,
  begin: Sequence[int] = (),
) -> list[Rows]:
  """Rows of `config.context` tokens of each source of config.data; `num_tokens`: of its first ones alone, 0: of all."""
  data = config['data']
  streams = [tokenize(documents(name, split, data['held_out']), tokenizer) for name in sources_of(data)]
  if num_tokens:
    unpredicted = 0 if begin else 1
    streams = [head(stream, num_tokens + unpredicted, tokenizer) for stream in streams]
  size, apart = context or config['context'], data['separate_documents']
  return [Rows(stream, size, apart, drop_remainder, stride, begin) for stream in streams]


def weights_of(data: Mapping[str, Any]) -> list[float]:
  """The mixture's weights, alike where the config gives none."""
  return list(data['weights'] or (1.0,) * len(sources_of(data)))


def beside(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config of the text that is learned from besides, as in pretraining: config.pretraining in place of config.data.

  Raises:
    UserError: it names no source.
  """
  if not config['pretraining']['source']:
    raise UserError('config.pretraining.source is missing: name the text that is learned from besides')
  return {**config, 'data': {**config['pretraining'], 'weights': None, 'separate_documents': True}}


def placed(held_out: Iterable[Dataset], batch_size: int, placement: Placement | None) -> Iterator[Batch]:
  """Every row once, in batches on the mesh of which this process reads its part; without one, all as they are."""
  share = {} if placement is None else placement.share
  batches = (batch for rows in held_out for batch in in_order(rows, batch_size, **share))
  return batches if placement is None else map(placement.batch, batches)


Evaluation = Callable[[Params], dict[str, float]]


def validation(
  model: LanguageModel,
  held_out: Sequence[Rows] | Sequence[LeftToRight],
  batch_size: int,
  placement: Placement | None = None,
) -> Evaluation:
  """Loss in nats a token, perplexity and bits per byte of all held-out text; `placement`: where batches are put.

  Bytes are all of the text's, also of the first token of a text, or of a document apart, which nothing predicts.
  """
  return measured(model, held_out, batch_size, placement, sum(rows.stream.num_bytes for rows in held_out))


def measured(
  model: LanguageModel,
  held_out: Sequence[Dataset],
  batch_size: int,
  placement: Placement | None = None,
  num_bytes: int | None = None,
) -> Evaluation:
  """Loss in nats a token and perplexity of rows, and bits per byte where there are so many."""
  loss_fn = next_token_loss(model)

  def evaluation(params: Params) -> dict[str, float]:
    return evaluate(loss_fn, params, placed(held_out, batch_size, placement), num_bytes=num_bytes)

  return evaluation
