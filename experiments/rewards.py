"""What scores a response: a reward model, or a function of what was asked and what was said."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import language, prompts, runs
from experiments.heads import load_reward
from gpt_jax.data import tokenizers
from gpt_jax.data.rows import one_text
from gpt_jax.data.tokenizers import Tokenizer
from gpt_jax.names import choose
from gpt_jax.rollouts import Response, Reward
from gpt_jax.types import UserError

Verifier = Callable[[Mapping[str, Any], str, str], float]
"""A score, of the record that a prompt came from, the text of the prompt, and that of the response."""


def _vader() -> Verifier:
  """How positive a response is by a lexicon, from -1 to 1 (Hutto and Gilbert 2014: the compound score)."""
  try:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
  except ImportError as error:
    raise UserError("'vader' needs a library: pip install vaderSentiment") from error
  analyzer = SentimentIntensityAnalyzer()
  return lambda record, prompt, response: float(analyzer.polarity_scores(response)['compound'])


def _answer() -> Verifier:
  """1 where the first line of the response is the record's "answer", else 0."""
  first = lambda text: text.strip().split('\n')[0].strip()
  return lambda record, prompt, response: float(first(response) == str(record.get('answer')).strip())


def _gym() -> Verifier:
  """What reasoning-gym says of an answer to one of its tasks, from 0 to 1."""
  try:
    import reasoning_gym
  except ImportError as error:
    raise UserError("'gym' needs a library: pip install reasoning-gym") from error

  def verify(record: Mapping[str, Any], prompt: str, response: str) -> float:
    del prompt
    task = record.get('metadata', {}).get('source_dataset')
    if task is None:
      raise UserError("the reward 'gym' is of tasks of reasoning-gym: take the prompts from gym:TASK")
    entry = {'question': record['prompt'], 'answer': record['answer'], 'metadata': record['metadata']}
    return float(reasoning_gym.get_score_answer_fn(task)(response.strip(), entry))

  return verify


FUNCTIONS: dict[str, Callable[[], Verifier]] = {'vader': _vader, 'answer': _answer, 'gym': _gym}
"""What makes each, by name: a library is asked for once, and before anything is read. A verifier is one more line."""


def of_function(
  name: str, field: str, tokenizer: Tokenizer, records: Mapping[tuple[int, ...], Mapping[str, Any]]
) -> Reward:
  """The reward of a function by its name; `records` are those of prompts, by their tokens.

  Raises:
    UserError: there is no such function, or its library is missing.
  """
  verify = choose(field, name, FUNCTIONS)()
  said = functools.partial(text, tokenizer)

  def reward(responses: Sequence[Response]) -> np.ndarray:
    return np.array([verify(records[tuple(one.prompt)], said(one.prompt), said(one.tokens)) for one in responses])

  return reward


def text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
  """The text of tokens, without what ends one."""
  ends = prompts.ends(tokenizer)
  return tokenizers.decode(tokenizer, [token for token in ids if token not in ends])


def of_model(workdir: str, tokenizer: Tokenizer, length: int, batch_size: int) -> Reward:
  """The reward of a run of experiments.reward, which reads texts of at most `length` tokens, so many at a time.

  A response that ended has the end of a text behind it, as the texts had that the model learned from.

  Raises:
    UserError: there is no such run, or its tokenizer is another.
  """
  model, params = load_reward(workdir)
  theirs = language.tokenizer_of(workdir)
  if tokenizers.fingerprint(theirs) != tokenizers.fingerprint(tokenizer):
    raise UserError(f'the reward model {workdir} has another tokenizer than the policy')
  runs.check_context(model.config, length + 1, 'a prompt, max_new_tokens and what ends a text')
  apply = jax.jit(model.apply)
  ends = prompts.ends(tokenizer)

  def whole(response: Response) -> list[int]:
    tokens = [*response.prompt, *response.tokens]
    closing = response.ended and tokens[-1] not in ends and tokenizer.end_of_text is not None
    return [*tokens, tokenizer.end_of_text] if closing else tokens  # type: ignore[list-item]

  def reward(responses: Sequence[Response]) -> np.ndarray:
    scores = []
    for start in range(0, len(responses), batch_size):
      texts = [whole(response) for response in responses[start : start + batch_size]]
      tokens, real = np.zeros((2, batch_size, length + 1), np.int32)
      for row, ids in enumerate(texts):
        tokens[row, : len(ids)], real[row, : len(ids)] = ids, 1
      found = apply(params, jnp.asarray(tokens), one_text(real > 0))
      scores.append(np.asarray(found)[: len(texts)])
    return np.concatenate(scores)

  return reward
