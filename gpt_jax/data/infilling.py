"""Blank infilling as data: texts in which spans are blanked, and behind them what stood there (Du et al. 2022)."""

from collections.abc import Sequence
import dataclasses

import jax
from jaxtyping import Bool, Float, Int, Integer
import numpy as np

from gpt_jax.data.answers import Taught
from gpt_jax.data.blanks import Blanks, draw_sentences, draw_words
from gpt_jax.data.marks import Marks
from gpt_jax.data.rows import Rows
from gpt_jax.types import Batch, Layout, UserError


def blanked(
  tokens: Integer[np.ndarray, 'W N'],
  counts: Int[np.ndarray, 'W'],
  blanks: Int[np.ndarray, 'W N'],
  turns: Float[np.ndarray, 'W M'],
  masks: Int[np.ndarray, 'W'],
  marks: Marks,
  length: int,
  ended: bool = True,
) -> Batch:
  """Texts as GLM reads them: part A, in which a mask stands for each blank, and part B, what stood in the blanks.

  A is read both ways, B from left to right, each blank behind `start`. A token of B stands in the text where its mask
  does, and in its blank from 1 on, `start` being the first; one of A stands in no blank: 0. To be predicted are the
  tokens of B, and behind each blank `end`, which nobody reads: so `labels` is what `tokens` is, but for these places.

  Args:
    tokens: of the texts, `counts` each.
    counts: of tokens.
    blanks: the number of each token's blank, from 1 in the order of the text; 0: in none.
    turns: blanks are written in the order of these.
    masks: what stands for the blanks of each text.
    marks: of the vocabulary.
    length: places of a row that are read; it must have room for A and B.
    ended: whether `end` is to be predicted.

  Returns:
    tokens, labels, weights and layout [W, length + 1].
  """
  rows, size = tokens.shape
  place = np.arange(size)
  real = place < counts[:, None]
  blanks = np.where(real, blanks, 0)
  first = (blanks > 0) & (blanks != np.pad(blanks, ((0, 0), (1, 0)))[:, :-1])
  shown = real & ((blanks == 0) | first)
  in_text = np.cumsum(shown, axis=1) - 1
  in_blank = place - np.maximum.accumulate(np.where(first, place, 0), axis=1)
  parts = shown.sum(axis=1)

  row = np.arange(rows)[:, None]
  lengths = np.zeros((rows, turns.shape[1] + 1), int)
  np.add.at(lengths, (row, blanks), blanks > 0)
  lengths = lengths[:, 1:]
  order = np.argsort(turns, axis=1)
  taken = np.where(lengths > 0, lengths + 1, 0)
  in_order = taken[row, order]
  begins = np.empty_like(lengths)
  begins[row, order] = parts[:, None] + np.cumsum(in_order, axis=1) - in_order

  shape = (rows, length + 1)
  made, position, block = np.zeros((3, *shape), np.int32)
  weights = np.zeros(shape, np.float32)
  r, c = np.nonzero(shown)
  made[r, in_text[r, c]] = np.where(first[r, c], masks[r], tokens[r, c])
  position[r, in_text[r, c]] = in_text[r, c]
  r, c = np.nonzero(first)
  at = begins[r, blanks[r, c] - 1]
  made[r, at], position[r, at], block[r, at] = marks.start, in_text[r, c], 1
  r, c = np.nonzero(blanks)
  at = begins[r, blanks[r, c] - 1] + 1 + in_blank[r, c]
  made[r, at], position[r, at], block[r, at] = tokens[r, c], in_text[r, c], 2 + in_blank[r, c]
  weights[r, at] = 1
  labels = made.copy()
  r, blank = np.nonzero(lengths)
  at = begins[r, blank] + taken[r, blank]
  labels[r, at], weights[r, at] = marks.end, ended
  places = np.broadcast_to(np.arange(length + 1, dtype=np.int32), shape)
  segment = (places < (parts + taken.sum(axis=1))[:, None]).astype(np.int32)
  layout = Layout(places, position, block, segment, places < parts[:, None])
  return {'tokens': made, 'labels': labels, 'weights': weights, 'layout': layout}


def side_by_side(windows: Batch, number: int, length: int) -> Batch:
  """Rows of `length` places that are read, of `number` windows each, which do not see one another."""

  def arranged(x: np.ndarray) -> np.ndarray:
    x = x.reshape(-1, number, x.shape[1])
    row = np.concatenate([x[:, :, :-1].reshape(len(x), -1), x[:, -1, -1:]], axis=1)
    return np.pad(row, ((0, 0), (0, length + 1 - row.shape[1])))

  def predicted(x: np.ndarray) -> np.ndarray:
    """What is predicted behind a window's last place stands at the first of the next, which nothing predicts."""
    row, each = arranged(x), x.shape[1] - 1
    row[:, each : each * number : each] = x.reshape(-1, number, each + 1)[:, :-1, -1]
    return row

  layout = windows['layout']
  tokens = arranged(windows['tokens'])
  places = np.broadcast_to(np.arange(length + 1, dtype=np.int32), tokens.shape)
  window = np.tile(np.arange(1, number + 1, dtype=np.int32), len(tokens))[:, None]
  segment = np.where(layout.segment > 0, window, 0)
  others = (arranged(x) for x in (layout.position, layout.block, segment, layout.prefix))
  labels, weights = predicted(windows['labels']), predicted(windows['weights'])
  return {'tokens': tokens, 'labels': labels, 'weights': weights, 'layout': Layout(places, *others)}


LEAST_TEXT = 8
"""Tokens of a text in which words or sentences are blanked."""


class Blanked:
  """Rows of text with blanks; which, is a pure function of (seed, step, row).

  Args:
    rows: of the text, whole ones, of two tokens less than `context` (see `text_context`).
    how: what is blanked.
    marks: of the vocabulary.
    ends: of `sentence_ends`.
    context: places of a row that are read; it holds one more.
    seed: of the blanks.

  Raises:
    UserError: rows too short to hold a blank.
  """

  separate_documents = True

  def __init__(
    self, rows: Rows, how: Blanks, marks: Marks, ends: Bool[np.ndarray, 'V'], context: int, seed: int | tuple[int, ...]
  ):
    assert rows.context == text_context(context) and not rows.separate_documents
    self.rows, self.how, self.marks, self.ends = rows, how, marks, ends
    self.context = context
    self._seed = seed
    self._window = context // how.windows
    self._size = how.size(self._window)
    if how.word + how.sentence > 0 and self._size < LEAST_TEXT:
      raise UserError(
        f'config.context = {context}, of {how.windows} windows, is too short for blanks and {LEAST_TEXT} tokens of text'
      )

  def __len__(self) -> int:
    return len(self.rows)

  def batch(self, indices: Integer[np.ndarray, 'B'], step: int = 0) -> Batch:
    """tokens, labels and weights [B, context + 1] and their layout; an index of -1 gives a row of padding."""
    how, text = self.how, self.rows.batch(indices)['tokens']
    each = self._size + 2 + 3 * how.most(self._size)  # of a window, the most that `_windows` and `_rest` take
    numbers = 1 + how.windows * (each + 1)
    seeds = (np.random.default_rng((*np.atleast_1d(self._seed), step, index + 1)) for index in indices)
    draws = np.stack([generator.random(numbers) for generator in seeds])
    shares = np.cumsum([how.word, how.sentence, how.document])
    kinds = np.searchsorted(shares[:-1] / shares[-1], draws[:, 0], 'right')
    counts = np.where(indices < 0, 0, text.shape[1])
    made: list[Batch] = []
    order = []
    for of, make in ((kinds < 2, self._windows), (kinds == 2, self._rest)):
      if of.any():
        made.append(make(text[of], counts[of], kinds[of], draws[of, 1:]))
        order.append(np.nonzero(of)[0])
    back = np.argsort(np.concatenate(order))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[back], *made)

  def _windows(self, text, counts, kinds, draws) -> Batch:
    """Rows of windows whose words or sentences are blanked."""
    how, size, number = self.how, self._size, self.how.windows
    draws = draws.reshape(len(text) * number, -1)
    room = text.shape[1] // number
    start = np.tile(np.arange(number) * room, len(text)) + (draws[:, 0] * (room - size + 1)).astype(int)
    tokens = np.repeat(text, number, axis=0)[np.arange(len(draws))[:, None], start[:, None] + np.arange(size)]
    most = how.most(size)
    turns, draws = draws[:, 1 : 1 + most], draws[:, 1 + most :]
    blanks, masks = draw_words(how, draws, size), np.full(len(tokens), self.marks.word)
    if how.sentence:
      sentences = draw_sentences(how, draws[:, : size + 1], self.ends[tokens])
      found = np.repeat(kinds == 1, number) & sentences.any(axis=1)
      blanks, masks = np.where(found[:, None], sentences, blanks), np.where(found, self.marks.sentence, masks)
    counts = np.where(np.repeat(counts, number) > 0, size, 0)
    made = blanked(tokens, counts, blanks, turns, masks, self.marks, self._window)
    return side_by_side(made, number, self.context)

  def _rest(self, text, counts, kinds, draws) -> Batch:
    """Rows of whose text the rest is blanked. What ends with a row is no end of a text, so it is not learned as one."""
    del kinds
    least, size = self.how.least_document, text.shape[1]
    hidden = np.clip(np.round((least + (1 - least) * draws[:, 0]) * size), 1, size)[:, None]
    blanks = (np.arange(size) >= size - hidden).astype(int)
    turns, masks = np.zeros((len(text), 1)), np.full(len(text), self.marks.document)
    made = blanked(text, counts, blanks, turns, masks, self.marks, self.context, ended=False)
    return {**made, 'layout': running(made['layout'])} if self.how.running else made


def running(layout: Layout) -> Layout:
  """The same text with each token at the place that follows, in no blank."""
  position = np.where(layout.segment > 0, layout.order, 0)
  return dataclasses.replace(layout, position=position, block=np.zeros_like(layout.block))


def text_context(context: int) -> int:
  """Of `Rows` whose text, with a mask and the mark behind it, takes `context` places."""
  return context - 3


class LeftToRight:
  """Rows of text that is all in one blank: what a model that fills blanks is as a causal one (GLM, section 3.3).

  A row is read behind the mask of a document and `start`; what of it is predicted, is what `rows` says.
  """

  separate_documents = True

  def __init__(self, rows: Rows, marks: Marks, running: bool = False):
    self.rows, self.marks, self.running = rows, marks, running
    self.context = rows.context + 2
    self.stream = rows.stream

  def __len__(self) -> int:
    return len(self.rows)

  def batch(self, indices: Integer[np.ndarray, 'B'], step: int = 0) -> Batch:
    """tokens and weights [B, context + 1] and their layout; an index of -1 gives a row of padding."""
    text = self.rows.batch(indices, step)
    tokens = text['tokens']
    counts = np.where(indices < 0, 0, tokens.shape[1])
    blanks, turns = np.ones(tokens.shape, int), np.zeros((len(tokens), 1))
    masks = np.full(len(tokens), self.marks.document)
    made = blanked(tokens, counts, blanks, turns, masks, self.marks, self.context + 1, ended=False)
    made = jax.tree.map(lambda x: x[:, :-1], made)
    layout, weights = made['layout'], np.pad(text['weights'], ((0, 0), (2, 0)))
    return {
      'tokens': made['tokens'], 'weights': weights, 'layout': running(layout) if self.running else layout,
    }  # fmt: skip


class Asked:
  """Prompts, each with its answer in a blank behind it: instructions among text (GLM-130B, section 2.2).

  Args:
    texts: tokens, and which of them are to be predicted; the last that are in a row are the answer.
    marks: of the vocabulary.
    context: places of a row that are read; a text that takes more has no place, `dropped` counts those.

  Raises:
    UserError: no text has a place.
  """

  separate_documents = True

  def __init__(self, texts: Sequence[Taught], marks: Marks, context: int):
    self.context = context
    kept = []
    for tokens, taught in texts:
      end = 1 + max((place for place, said in enumerate(taught) if said), default=-1)
      start = 1 + max((place for place, said in enumerate(taught[:end]) if not said), default=-1)
      if 0 < start < end <= context - 2:
        kept.append((tokens[:end], start))
    self.dropped = len(texts) - len(kept)
    if not kept:
      raise UserError(f'no prompt has an answer that fits with it in {context - 2} tokens: take a longer context')
    counts = np.array([len(tokens) for tokens, _ in kept])
    text, blanks = np.zeros((2, len(kept), counts.max()), int)
    for row, (tokens, start) in enumerate(kept):
      text[row, : len(tokens)] = tokens
      blanks[row, start : len(tokens)] = 1
    turns, masks = np.zeros((len(kept), 1)), np.full(len(kept), marks.document)
    self._rows = blanked(text, counts, blanks, turns, masks, marks, context)

  def __len__(self) -> int:
    return len(self._rows['tokens'])

  def batch(self, indices: Integer[np.ndarray, 'B'], step: int = 0) -> Batch:
    """tokens, labels and weights [B, context + 1] and their layout; an index of -1 gives a row of padding."""
    real = indices[:, None] >= 0
    return jax.tree.map(lambda x: np.where(real, x[indices], np.zeros_like(x[:1])), self._rows)
