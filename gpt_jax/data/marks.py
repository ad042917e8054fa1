"""The tokens that blanks of a text are written with, and those in which a sentence ends."""

from collections.abc import Mapping
import dataclasses

from jaxtyping import Bool
import numpy as np

from gpt_jax.data.tokenizers import Tokenizer, with_special
from gpt_jax.types import UserError

NAMES: Mapping[str, tuple[str, ...]] = {
  'word': ('[MASK]',),
  'sentence': ('[sMASK]',),
  'document': ('[gMASK]',),
  'start': ('<|startofpiece|>', '<sop>', 'sop'),
  'end': ('<|endofpiece|>', '<eop>', 'eop'),
}
"""Of each field of `Marks`, what GLM, and GLM-130B and ChatGLM-6B call it."""


@dataclasses.dataclass(frozen=True)
class Marks:
  """The tokens that blanks are written with."""

  word: int
  """Stands for a blanked span of words."""
  sentence: int
  document: int
  """Stands for the rest of a text."""
  start: int
  """Begins what stood in a blank."""
  end: int

  @property
  def masks(self) -> tuple[int, int, int]:
    return self.word, self.sentence, self.document


def marks_of(tokenizer: Tokenizer) -> Marks | None:
  """The marks in a vocabulary; None: it does not have all five."""
  found = {}
  for field, names in NAMES.items():
    ids = (_number(tokenizer, name) for name in names)
    number = next((number for number in ids if number is not None), None)
    if number is None:
      return None
    found[field] = number
  return Marks(**found)


def _number(tokenizer: Tokenizer, name: str) -> int | None:
  try:
    ids = tokenizer.encode_special(name)
  except UserError:  # characters that are not in the vocabulary
    return None
  return int(ids[0]) if len(ids) == 1 else None


def with_marks(tokenizer: Tokenizer) -> Tokenizer:
  """The vocabulary with marks behind its tokens, where it has none.

  Raises:
    UserError: it takes no more tokens.
  """
  return tokenizer if marks_of(tokenizer) else with_special(tokenizer, [names[0] for names in NAMES.values()])


SENTENCE_ENDS = '.?!;:…。？！；：'


def sentence_ends(tokenizer: Tokenizer) -> Bool[np.ndarray, 'V']:
  """Of each token, whether a sentence ends in it."""
  texts = (tokenizer.decode_bytes([number]).decode('utf-8', 'ignore') for number in range(tokenizer.vocab_size))
  ends = np.array([any(sign in text for sign in SENTENCE_ENDS) for text in texts])
  if tokenizer.end_of_text is not None:
    ends[tokenizer.end_of_text] = True
  return ends
