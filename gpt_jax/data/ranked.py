"""Rankings as rows: all responses to a prompt together, so that each is read once for all its comparisons."""

from collections.abc import Sequence

from jaxtyping import Integer
import numpy as np

from gpt_jax.data.formats import Ranking, encode
from gpt_jax.data.rows import one_text
from gpt_jax.data.tokenizers import Tokenizer
from gpt_jax.types import Batch, UserError


class Ranked:
  """Row i is ranking i: its responses with the prompt before each, filled up to the most that any ranking has.

  Args:
    rankings: of which source.
    tokenizer: of the model.
    context: tokens of a text; longer ones are cut where it ends, `cut` counts them.
    begin: tokens that stand before every text.

  Raises:
    UserError: there is no ranking, or a prompt leaves no room for a response.
  """

  separate_documents = True

  def __init__(self, rankings: Sequence[Ranking], tokenizer: Tokenizer, context: int, begin: Sequence[int] = ()):
    if not rankings:
      raise UserError('there is no ranking: the source has none for this split')
    self.context = context
    self.cut = 0
    shape = (len(rankings), max(len(ranking.responses) for ranking in rankings))
    self._tokens = np.zeros((*shape, context), np.int32)
    self._lengths = np.zeros(shape, np.int32)
    self._prompts = np.zeros((len(rankings), 1, 1), np.int32)
    self._scores = np.zeros(shape, np.float32)
    for row, ranking in enumerate(rankings):
      prompt, responses = encode(tokenizer, ranking, begin)
      if len(prompt) >= context:
        raise UserError(f'prompt {row} has {len(prompt)} tokens: context = {context} must leave room for a response')
      self._prompts[row] = len(prompt)
      for place, response in enumerate(responses):
        tokens = [*prompt, *response]
        if not tokens:
          raise UserError(f'response {place} of ranking {row} is empty, and the vocabulary has no end of text: drop it')
        self.cut += len(tokens) > context
        length = min(len(tokens), context)
        self._tokens[row, place, :length] = tokens[:length]
        self._lengths[row, place] = length
      self._scores[row, : len(responses)] = ranking.scores

  @property
  def responses(self) -> int:
    """Places for responses in a row, whether there are so many or not."""
    return self._tokens.shape[1]

  @property
  def texts(self) -> int:
    """Responses of all rankings."""
    return int((self._lengths > 0).sum())

  def __len__(self) -> int:
    return len(self._tokens)

  def batch(self, indices: Integer[np.ndarray, 'B'], step: int = 0) -> Batch:
    """tokens [B, K, T], their layout, and `said`, 1 at the tokens of responses; scores and weights [B, K].

    weights are 1 where there is a response; an index of -1 gives none.
    """
    del step
    lengths = np.where(indices[:, None] >= 0, self._lengths[indices], 0)
    places = np.arange(self.context)
    real = places < lengths[..., None]
    return {
      'tokens': np.where(real, self._tokens[indices], 0),
      'weights': (lengths > 0).astype(np.float32),
      'scores': self._scores[indices],
      'said': (real & (places >= self._prompts[indices])).astype(np.float32),
      'layout': one_text(real),
    }
