"""How well models fill blanks: of held-out text what stood there, or of questions the right one of several answers.

python -m experiments.cloze --models=runs/glm,runs/causal --source=asset:gutenberg [--texts=256] [--size=100]
python -m experiments.cloze --models=runs/glm --questions=FILE.jsonl

Of every text one span is blanked, Poisson in length. A model that fills blanks reads both sides of it, and once more
the left alone; another reads what stands before it. A line of questions is {"prompt": text with [MASK], "options":
[texts], "answer": text}.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import pathlib
from typing import Any

from absl import flags
import numpy as np
from tabulate import tabulate

from experiments import blanks, command, language
from gpt_jax.data.answers import Answers, answered
from gpt_jax.data.blanks import Blanks
from gpt_jax.data.infilling import blanked
from gpt_jax.data.rows import Rows, tokenize
from gpt_jax.data.sources import documents
from gpt_jax.evaluation.cloze import Filling, choice_logprobs, filling
from gpt_jax.types import Batch, UserError

MODELS = flags.DEFINE_list('models', None, f'by commas, each {language.MODEL}')
SOURCE = flags.DEFINE_list('source', None, 'of texts, by commas: asset:NAME, file:PATH, tfds:NAME or hf:NAME')
SPLIT = flags.DEFINE_enum('split', 'validation', ['train', 'validation'], 'of the source')
HELD_OUT = flags.DEFINE_float('held_out', 0.1, 'fraction, where the source has no validation split of its own')
TEXTS = flags.DEFINE_integer('texts', 256, 'from all over the source, at most', lower_bound=1)
SIZE = flags.DEFINE_integer('size', 100, 'tokens of a text, by the vocabulary of the first model', lower_bound=16)
BATCH_SIZE = flags.DEFINE_integer('batch_size', 32, 'texts, or options, at a time', lower_bound=1)
SEED = flags.DEFINE_integer('seed', 0, 'of the blanks')
QUESTIONS = flags.DEFINE_string('questions', None, 'a file of JSON lines')


def main(_: Any) -> None:
  models = [(name, language.load(name)) for name in command.required(MODELS)]
  if (QUESTIONS.value is None) == (SOURCE.value is None):
    raise UserError('give --source, of texts whose blanks are filled, or --questions=FILE.jsonl')
  if QUESTIONS.value is not None:
    asked = read_questions(pathlib.Path(QUESTIONS.value))
    print(tabulate([[name, right(model, asked)] for name, model in models], ['model', 'right'], floatfmt='.3f'))
    return
  table = []
  for source in command.required(SOURCE):
    spans = drawn(source, models[0][1])
    left = [dataclasses.replace(span, behind='') for span in spans]
    for name, model in models:
      for reads, given in (('both sides', spans), ('the left', left)) if model.marks else (('the left', left),):
        table.append({'source': source, 'model': name, 'reads': reads, **dataclasses.asdict(filled(model, given))})
  print(tabulate(table, 'keys', floatfmt='.3f'))
  print(json.dumps(table))


@dataclasses.dataclass(frozen=True)
class Span:
  """A text, and the span of it that is blanked."""

  before: str
  inside: str
  behind: str


def drawn(source: str, model: language.Trained) -> list[Span]:
  """Texts of a source with one blank each, as characters."""
  stream = tokenize(documents(source, SPLIT.value, HELD_OUT.value), model.tokenizer)
  rows = Rows(stream, SIZE.value - 1)
  texts = rows.batch(np.linspace(0, len(rows) - 1, min(TEXTS.value, len(rows))).astype(int))['tokens']
  generator, how = np.random.default_rng(SEED.value), Blanks()
  found = []
  for text in texts:
    for chances in generator.random((TRIES, 2)):
      length = int(how.draw_lengths(chances[:1])[0])
      start = 1 + int(chances[1] * (SIZE.value - length - 1))
      before, inside, behind = (model.decode(part.tolist()) for part in np.split(text, [start, start + length]))
      span = Span(before.lstrip(BROKEN), inside, behind.rstrip(BROKEN))
      if span.before and inside and BROKEN not in span.before + inside + span.behind:
        found.append(span)
        break
  return found


BROKEN = '\ufffd'
"""Stands for the part of a character that a text begins or ends with."""

TRIES = 8
"""To find a span of whole characters."""


def filled(model: language.Trained, spans: Sequence[Span]) -> Filling:
  """How well a model fills the blanks."""
  make = _before_and_inside if model.marks is None else _with_blanks
  batches = (make(model, spans[first : first + BATCH_SIZE.value]) for first in range(0, len(spans), BATCH_SIZE.value))
  return filling(model.model, model.params, batches, None if model.marks is None else model.marks.end)


def _with_blanks(model: language.Trained, spans: Sequence[Span]) -> Batch:
  marks = blanks.marks(model.tokenizer)
  parts = [[model.tokenizer.encode(part) for part in (span.before, span.inside, span.behind)] for span in spans]
  counts = np.array([sum(map(len, three)) for three in parts])
  length = _room(int(counts.max()) + 2)
  text, blank = np.zeros((2, len(spans), int(counts.max())), int)
  for row, (before, inside, behind) in enumerate(parts):
    text[row, : counts[row]] = np.concatenate([before, inside, behind])
    blank[row, len(before) : len(before) + len(inside)] = 1
  turns, masks = np.zeros((len(spans), 1)), np.full(len(spans), marks.word)
  return blanked(text, counts, blank, turns, masks, marks, length)


def _before_and_inside(model: language.Trained, spans: Sequence[Span]) -> Batch:
  encode = model.tokenizer.encode
  texts = [answered([*model.begin, *encode(span.before).tolist()], encode(span.inside).tolist()) for span in spans]
  rows = Answers(texts, _room(max(len(tokens) for tokens, _ in texts)) - 1)
  return rows.batch(np.arange(len(rows)))


def _room(length: int) -> int:
  """So that few shapes are compiled."""
  return -(-length // 32) * 32


def read_questions(path: pathlib.Path) -> list[Mapping[str, Any]]:
  """The questions of a file.

  Raises:
    UserError: it names the line that is none.
  """
  try:
    lines = path.read_text().splitlines()
  except OSError as error:
    raise UserError(f'--questions={path} can not be read: {error.strerror}') from None
  return list(_questions(path, lines))


def _questions(path: pathlib.Path, lines: Sequence[str]) -> Iterator[Mapping[str, Any]]:
  for number, text in enumerate(lines, 1):
    try:
      line = json.loads(text)
      fits = isinstance(line['prompt'], str) and line['answer'] in line['options'] and all(line['options'])
    except (ValueError, KeyError, TypeError):
      fits = False
    if not fits:
      raise UserError(f'{path}, line {number}: expected "prompt", "options" and the "answer" that is one of them')
    yield line


def right(model: language.Trained, questions: Sequence[Mapping[str, Any]]) -> float:
  """The share of questions of which the right option is the likeliest."""
  encode, encode_special = model.tokenizer.encode, model.tokenizer.encode_special
  found = choice_logprobs(
    model.model, model.params, [encode_special(line['prompt']).tolist() for line in questions],
    [[encode(option).tolist() for option in line['options']] for line in questions],
    blanks.marks(model.tokenizer), running=blanks.runs_on(model.model.config), batch_size=BATCH_SIZE.value,
  )  # fmt: skip
  chosen = [line['options'][int(of.argmax())] for line, of in zip(questions, found, strict=True)]
  return float(np.mean([option == line['answer'] for option, line in zip(chosen, questions, strict=True)]))


if __name__ == '__main__':
  command.run(main)
