"""Which parts of texts are blanked: spans of words, whole sentences, the rest of a text (Du et al. 2022)."""

import dataclasses
import math

from jaxtyping import Bool, Float, Int
import numpy as np

from gpt_jax.types import UserError

KINDS = ('word', 'sentence', 'document')
"""Of blanks."""


@dataclasses.dataclass(frozen=True)
class Blanks:
  """Which parts of texts are blanked (GLM, section 2.1; GLM-130B, section 2.2).

  Shares are of rows: of those whose blanks are words, sentences, and the rest of the text.
  """

  word: float = 0.5
  sentence: float = 0.3
  document: float = 0.2
  ratio: float = 0.15
  """Of the tokens of a text: words and sentences are drawn until so many are blanked."""
  least_ratio: float | None = None
  """If given, each text has a ratio of its own, uniform from this to `ratio`: few blanks are met, and many."""
  mean_length: float = 3.0
  """Of the Poisson distribution that the lengths of spans of words are drawn from, from 1 to `longest` tokens."""
  longest: int = 39
  least_document: float = 0.5
  """The least part of a text that its blanked rest is; its length is uniform from there to all of it."""
  windows: int = 1
  """Texts side by side in a row, where blanks are words or sentences (GLM-130B: 4)."""
  running: bool = False
  """The rest of a text stands at the places that follow, not in a blank: for a rotation that knows no blanks."""

  def __post_init__(self) -> None:
    share, positive = (lambda x: x >= 0, 'at least 0'), (lambda x: x > 0, 'above 0')
    needed = {
      **dict.fromkeys(KINDS, share),
      'ratio': (lambda x: 0 < x <= 0.5, 'above 0 and at most 0.5'),
      'least_document': (lambda x: 0 < x <= 1, 'above 0 and at most 1'),
      **dict.fromkeys(('mean_length', 'longest', 'windows'), positive),
    }
    for name, (fits, what) in needed.items():
      if not fits(getattr(self, name)):
        raise UserError(f'config.infilling.{name} = {getattr(self, name)} must be {what}')
    if self.least_ratio is not None and not 0 <= self.least_ratio <= self.ratio:
      raise UserError(f'config.infilling.least_ratio = {self.least_ratio} must be from 0 to ratio, {self.ratio}')
    if not any(getattr(self, kind) for kind in KINDS):
      raise UserError(f'config.infilling: one of {", ".join(KINDS)} must be above 0')

  @property
  def lengths(self) -> Float[np.ndarray, 'longest']:
    """The probabilities of lengths 1, 2, ... of a span of words."""
    of = np.arange(1, self.longest + 1)
    logarithms = of * math.log(self.mean_length) - np.cumsum(np.log(of))
    weights = np.exp(logarithms - logarithms.max())
    return weights / weights.sum()

  def draw_lengths(self, draws: Float[np.ndarray, '*W']) -> Int[np.ndarray, '*W']:
    """Lengths of spans of words, of draws from 0 to 1."""
    return 1 + np.searchsorted(np.cumsum(self.lengths)[:-1], draws, 'right')

  def enough(self, draws: Float[np.ndarray, 'W'], size: int) -> Float[np.ndarray, 'W 1']:
    """Tokens of texts of `size` that are blanked at least, one or more, of draws from 0 to 1."""
    least = self.ratio if self.least_ratio is None else self.least_ratio
    return np.maximum((least + (self.ratio - least) * draws)[:, None] * size, 1)

  def most(self, size: int) -> int:
    """Blanks of `size` tokens for which there is room: hardly ever are more drawn."""
    of = np.arange(1, self.longest + 1)
    mean = float(self.lengths @ of)
    variance = float(self.lengths @ (of - mean) ** 2)
    number = self.ratio * size / mean
    return math.ceil(number + 4 * math.sqrt(number * variance) / mean) + 1

  def size(self, length: int) -> int:
    """Tokens of a text whose words or sentences are blanked, so that it fits in `length` places."""
    return next((size for size in range(length, 0, -1) if size + 2 * self.most(size) <= length), 0)


def draw_words(how: Blanks, draws: Float[np.ndarray, 'W K'], size: int) -> Int[np.ndarray, 'W N']:
  """Blanks of spans of words in texts of `size` tokens, at least one token between two; draws are from 0 to 1.

  Lengths are drawn until `how.enough`, of the first draw, is reached; where spans lie is uniform over all ways to
  place them.
  """
  most = how.most(size)
  lengths, mixed, slots = np.split(draws[:, 1:], [most, 2 * most], axis=1)
  lengths = how.draw_lengths(lengths)
  ends = np.cumsum(lengths, axis=1)
  drawn = (ends - lengths < how.enough(draws[:, 0], size)) & (ends + np.arange(most) <= size)
  # The last of those that were drawn until there were enough are longer than others: they must not stand last.
  lengths = np.take_along_axis(lengths * drawn, np.argsort(np.where(drawn, mixed, 2), axis=1), axis=1)
  number = drawn.sum(axis=1)
  # Between, before and behind the tokens that stay there are slots, of which each holds one span at most.
  free = np.arange(size + 1) <= size - lengths.sum(axis=1)[:, None]
  slots = np.where(free, slots[:, : size + 1], 2)
  chosen = slots <= np.sort(slots, axis=1)[np.arange(len(slots)), number - 1][:, None]
  starts = np.argsort(~chosen, axis=1, kind='stable')[:, :most] + np.cumsum(lengths, axis=1) - lengths
  row, span = np.nonzero(np.arange(most) < number[:, None])
  begun, over = np.zeros((2, len(draws), size + 1), int)
  begun[row, starts[row, span]] = 1
  over[row, starts[row, span] + lengths[row, span]] = 1
  numbers = np.cumsum(begun, axis=1)
  return np.where(numbers > np.cumsum(over, axis=1), numbers, 0)[:, :size]


def draw_sentences(
  how: Blanks, draws: Float[np.ndarray, 'W K'], ending: Bool[np.ndarray, 'W N']
) -> Int[np.ndarray, 'W N']:
  """Blanks of whole sentences, until `how.enough`, of the first draw, is reached; a text without one has no blank.

  `ending` says where a sentence ends; of several such tokens in a row, in the last.
  """
  rows, size = ending.shape
  ending = ending & ~np.pad(ending, ((0, 0), (0, 1)))[:, 1:]
  sentence = np.cumsum(ending, axis=1) - ending  # the first begins, and what follows the last end stops, elsewhere
  row = np.arange(rows)[:, None]
  lengths = np.zeros((rows, size), int)
  np.add.at(lengths, (row, sentence), 1)
  number = np.arange(size)
  whole = (number > 0) & (number < ending.sum(axis=1)[:, None])
  order = np.argsort(np.where(whole, draws[:, 1:], 2), axis=1)
  in_order = np.where(whole, lengths, 0)[row, order]
  missing = np.cumsum(in_order, axis=1) - in_order < how.enough(draws[:, 0], size)
  taken = missing & (in_order > 0) & (number < how.most(size))
  chosen = np.zeros((rows, size), bool)
  chosen[row, order] = taken
  return np.where(chosen, np.cumsum(chosen, axis=1), 0)[row, sentence]
