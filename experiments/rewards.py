"""What scores a response: a reward model, or a function of what was asked and what was said."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import language
from experiments.heads import load_reward
from gpt_jax.data import tokenizers
from gpt_jax.data.rows import one_text
from gpt_jax.data.tokenizers import Tokenizer
from gpt_jax.names import choose
from gpt_jax.rollouts import Response, Reward
from gpt_jax.types import UserError

Verifier = Callable[[Mapping[str, Any], str, str], float]
"""A score, of the record that a prompt came from, the text of the prompt, and that of the response."""


def _vader(record: Mapping[str, Any], prompt: str, response: str) -> float:
  """How positive a response is by a lexicon, from -1 to 1 (Hutto and Gilbert 2014: the compound score)."""
  del record, prompt
  return float(_analyzer().polarity_scores(response)['compound'])


def _analyzer(made: list[Any] = []) -> Any:  # noqa: B006  the lexicon is read once
  if not made:
    try:
      from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
      raise UserError("the judge 'vader' needs a library: pip install vaderSentiment") from error
    made.append(SentimentIntensityAnalyzer())
  return made[0]


def _answer(record: Mapping[str, Any], prompt: str, response: str) -> float:
  """1 where the response begins with the record's "answer" and nothing else is in its first line, else 0."""
  del prompt
  return float(response.strip().split('\n')[0].strip() == str(record.get('answer')).strip())


def _gym(record: Mapping[str, Any], prompt: str, response: str) -> float:
  """What reasoning-gym says of an answer to one of its tasks, from 0 to 1."""
  import reasoning_gym  # the source of such records needs it already

  del prompt
  entry = {'question': record['prompt'], 'answer': record['answer'], 'metadata': record['metadata']}
  score = reasoning_gym.get_score_answer_fn(record['metadata']['source_dataset'])
  return float(score(response.strip(), entry))


FUNCTIONS: dict[str, Verifier] = {'vader': _vader, 'answer': _answer, 'gym': _gym}
"""By name. A verifiable reward is one more line here."""


def of_function(
  name: str, field: str, tokenizer: Tokenizer, records: Mapping[tuple[int, ...], Mapping[str, Any]]
) -> Reward:
  """The reward of a function by its name; `records` are those of prompts, by their tokens.

  Raises:
    UserError: there is no such function, or its library is missing.
  """
  function = choose(field, name, FUNCTIONS)
  if function is _vader:
    _analyzer()
  text = lambda ids: tokenizers.decode(tokenizer, _without(ids, tokenizer))

  def reward(responses: Sequence[Response]) -> np.ndarray:
    return np.array([function(records[tuple(one.prompt)], text(one.prompt), text(one.tokens)) for one in responses])

  return reward


def _without(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
  """Tokens without what ends a text."""
  ends = {tokenizer.end_of_text, *tokenizer.conventions.ends}
  return [token for token in ids if token not in ends]


def of_model(workdir: str, tokenizer: Tokenizer, length: int, batch_size: int) -> Reward:
  """The reward of a run of experiments.reward, which reads texts of at most `length` tokens, so many at a time.

  A response that ended has the end of a text behind it, as the texts had that the model learned from.

  Raises:
    UserError: there is no such run, or its tokenizer is another.
  """
  model, params = load_reward(workdir)
  theirs = language.tokenizer_of(workdir)
  if tokenizers.fingerprint(theirs) != tokenizers.fingerprint(tokenizer):
    raise UserError(f'config.reward.model = {workdir} has another tokenizer than the policy')
  language.check_context(model.config, length + 1)
  apply = jax.jit(model.apply)
  ends = {tokenizer.end_of_text, *tokenizer.conventions.ends}

  def text(response: Response) -> list[int]:
    tokens = [*response.prompt, *response.tokens]
    closing = response.ended and tokens[-1] not in ends and tokenizer.end_of_text is not None
    return [*tokens, tokenizer.end_of_text] if closing else tokens  # type: ignore[list-item]

  def reward(responses: Sequence[Response]) -> np.ndarray:
    scores = []
    for start in range(0, len(responses), batch_size):
      texts = [text(response) for response in responses[start : start + batch_size]]
      tokens, real = np.zeros((2, batch_size, length + 1), np.int32)
      for row, ids in enumerate(texts):
        tokens[row, : len(ids)], real[row, : len(ids)] = ids, 1
      found = apply(params, jnp.asarray(tokens), one_text(real > 0))
      scores.append(np.asarray(found)[: len(texts)])
    return np.concatenate(scores)

  return reward
