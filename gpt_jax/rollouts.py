"""Sample, score, say what each token was worth: the source of batches for policies that learn from what they write."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from gpt_jax.data.answers import Answers, answered
from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.models.heads import ActorCritic, LanguageModel, policy_params
from gpt_jax.objectives import advantages
from gpt_jax.objectives.likelihood import next_token
from gpt_jax.objectives.policy import logprobs_of, response_logprobs
from gpt_jax.training.loop import TrainState
from gpt_jax.training.workdir import write_whole
from gpt_jax.types import Batch, Params


@dataclasses.dataclass(frozen=True)
class Response:
  """What a policy wrote after a prompt."""

  prompt: Sequence[int]
  tokens: Sequence[int]
  ended: bool
  """By itself, or where responses are truncated: not for want of room."""


@dataclasses.dataclass(frozen=True)
class Writing:
  """How responses are written."""

  max_new_tokens: int
  sampling: Sampling = Sampling()
  stop_ids: tuple[int, ...] = ()
  """Each of them ends a response; none: all have max_new_tokens, as in lm-human-preferences."""
  truncate_ids: tuple[int, ...] = ()
  """A response is cut behind the first of these, from its token number `truncate_after` on."""
  truncate_after: int = 0
  num_samples: int = 1
  """Responses to each prompt, which follow one another."""

  def __call__(
    self, model: LanguageModel, params: Params, prompts: Sequence[Sequence[int]], *, seed: int, first_row: int = 0
  ) -> list[Response]:
    """Responses to all prompts; draws are by seed and the number of the prompt, counted from `first_row`."""
    found = generate(
      LanguageModel(model.config), policy_params(params), prompts, max_new_tokens=self.max_new_tokens,
      sampling=self.sampling, stop_ids=self.stop_ids, seed=seed, stride=self.max_new_tokens, first_row=first_row,
      num_samples=self.num_samples,
    )  # fmt: skip
    return [
      self._truncated(prompts[row // self.num_samples], one.tokens.tolist(), one.finish == 'stop')
      for row, one in enumerate(found)
    ]

  def _truncated(self, prompt: Sequence[int], tokens: list[int], ended: bool) -> Response:
    places = range(max(self.truncate_after - 1, 0), len(tokens))
    end = next((place + 1 for place in places if tokens[place] in self.truncate_ids), None)
    return Response(prompt, tokens, ended) if end is None else Response(prompt, tokens[:end], True)


Reward = Callable[[Sequence[Response]], Float[np.ndarray, 'B']]
"""Scores of whole responses."""


@dataclasses.dataclass(frozen=True)
class Gae:
  """PPO's: rewards with the KL at each token, and generalised advantages over a critic's values."""

  discount: float = 1.0
  decay: float = 0.95
  whiten_rewards: bool = False
  whiten_advantages: bool = True

  def __call__(self, scores, logprobs, reference, values, weights, kl_coefficient):
    rewards = advantages.token_rewards(scores, logprobs, reference, weights, kl_coefficient)
    if self.whiten_rewards:
      rewards = advantages.whiten(rewards, weights, shift_mean=False)
    found = advantages.gae(rewards, values, weights, discount=self.discount, decay=self.decay)
    worth = advantages.whiten(found.advantages, weights) if self.whiten_advantages else found.advantages
    return {'advantages': worth, 'returns': found.returns, 'values': values}


@dataclasses.dataclass(frozen=True)
class Grpo:
  """A response's score among those of its group, for all of its tokens; the KL is left to the loss."""

  size: int
  scaled: bool = True

  def __call__(self, scores, logprobs, reference, values, weights, kl_coefficient):
    del logprobs, reference, values, kl_coefficient
    return {'advantages': advantages.group_relative(scores, self.size, scaled=self.scaled)[:, None] * weights}


@dataclasses.dataclass(frozen=True)
class Rloo:
  """A response's score, its KL taken off, over that of the others of its group."""

  size: int

  def __call__(self, scores, logprobs, reference, values, weights, kl_coefficient):
    del values
    kl = ((logprobs - reference) * weights).sum(axis=1)
    return {'advantages': advantages.leave_one_out(scores - kl_coefficient * kl, self.size)[:, None] * weights}


Estimator = Gae | Grpo | Rloo
"""What tokens were worth, of scores [B] and log-probabilities, values and weights [B, T]: entries of a batch."""


@dataclasses.dataclass(frozen=True)
class Kl:
  """The coefficient of the KL to the reference: fixed, or with a target adapted after each rollout."""

  coefficient: float = 0.02
  target: float = 0.0
  """Nats a response; 0: the coefficient is fixed."""
  horizon: float = 10_000
  """Episodes."""

  def after(self, coefficient: float, kl: float, episodes: int) -> float:
    """The coefficient of the next rollout."""
    if not self.target:
      return coefficient
    return advantages.adapted(coefficient, kl, target=self.target, horizon=self.horizon, episodes=episodes)


@dataclasses.dataclass
class Rollouts:
  """The minibatches of one rollout after another: a source for `training.run`.

  Batch `index` is of rollout index // (epochs * minibatches), written by the policy as it was when that began. One that
  is broken off within a rollout goes on with a new one by the policy as it is, and takes what is left of its steps.
  """

  model: LanguageModel
  """Without dropout, of the policy; an `ActorCritic` where the estimator needs values."""
  reference: Params
  """Of the language model that the policy is not to leave."""
  prompts: Callable[[int], Sequence[Sequence[int]]]
  """Those of a rollout by its number, always `num_prompts`, each at most `prompt_length` long."""
  num_prompts: int
  prompt_length: int
  writing: Writing
  reward: Reward
  estimator: Estimator
  kl: Kl
  minibatches: int
  epochs: int
  seed: int
  history: pathlib.Path
  """A file of JSON lines, one a rollout: how it went, and the first thing that was written."""
  decode: Callable[[Sequence[int]], str]
  missing_end_reward: float | None = None
  """The score of a response that did not end (EOS trick); None: what the reward says."""
  whiten_scores: bool = False
  """True: what is learned from are the scores of a rollout at mean 0 and deviation 1 (Touvron et al. 2023)."""
  pretraining: Callable[[int], Batch] | None = None
  """Text to go on learning from, by the number of the step."""
  chunk: int | None = None
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)
  """Spent sampling, scoring, reading (log-probabilities and values) and updating, since this was made."""

  def __post_init__(self) -> None:
    self._read = jax.jit(functools.partial(_read, self.model, self.writing.sampling.temperature, self.chunk))
    self._estimate = jax.jit(self.estimator.__call__)
    self._left: float | None = None

  @property
  def minibatch_size(self) -> int:
    """Responses of an update."""
    return self.num_prompts * self.writing.num_samples // self.minibatches

  def __call__(self, index: int, state: TrainState) -> Iterator[Batch]:
    """The minibatches from step `index` on, up to the end of its rollout."""
    self.settle(state.params)
    steps = self.minibatches * self.epochs
    number, done = divmod(index, steps)
    batch = self.roll(number, state.params)
    self._left = time.perf_counter()
    rows = len(batch['tokens'])
    for step in range(done, steps):
      epoch, part = divmod(step, self.minibatches)
      chosen = np.random.default_rng([self.seed, number, epoch]).permutation(rows).reshape(self.minibatches, -1)[part]
      minibatch = jax.tree.map(lambda array, chosen=chosen: array[chosen], batch)
      if self.pretraining is not None:
        minibatch['pretraining'] = self.pretraining(number * steps + step)
      yield minibatch

  def settle(self, params: Params) -> None:
    """Waits for the updates since the last rollout, and counts their time."""
    jax.block_until_ready(params)
    if self._left is not None:
      self._add('updating', time.perf_counter() - self._left)
    self._left = None

  def roll(self, number: int, params: Params) -> dict[str, Any]:
    """All of rollout `number` as one batch, on the host; adds its line to the history."""
    lines = self._lines(number)
    coefficient = lines[-1]['next_kl_coefficient'] if lines else self.kl.coefficient
    prompts = self.prompts(number)
    with self._timed('sampling'):
      found = self.writing(self.model, params, prompts, seed=self.seed, first_row=number * self.num_prompts)
    with self._timed('scoring'):
      scores = np.asarray(self.reward(found), np.float32)
    if self.missing_end_reward is not None:
      scores = np.where([response.ended for response in found], scores, np.float32(self.missing_end_reward))
    batch: dict[str, Any] = {**self._rows(found), 'scores': scores}
    learned = advantages.whiten(jnp.asarray(scores), jnp.ones(len(scores))) if self.whiten_scores else scores
    weights = batch['weights'][:, 1:]
    with self._timed('reading'):
      said = self._said(params, batch)
      worth = self._estimate(
        learned, said['old_logprobs'], said['reference_logprobs'], said.pop('values', None), weights, coefficient
      )
      batch |= {**said, **jax.device_get(worth)}
    kl = float(((said['old_logprobs'] - said['reference_logprobs']) * weights).sum(axis=1).mean())
    line = {
      'rollout': number, 'reward': float(scores.mean()), 'kl': kl, 'kl_coefficient': coefficient,
      'next_kl_coefficient': self.kl.after(coefficient, kl, len(found)), 'length': float(weights.sum(axis=1).mean()),
      'ended': float(np.mean([response.ended for response in found])), 'prompt': self.decode(found[0].prompt),
      'response': self.decode(found[0].tokens), 'score': float(scores[0]),
    }  # fmt: skip
    write_whole(self.history, ''.join(json.dumps(each) + '\n' for each in [*lines, line]))
    return batch

  def divergence(self, params: Params, responses: Sequence[Response]) -> tuple[float, float]:
    """KL of the policy to the reference in nats a response, and -log of the reference's probability in nats a token."""
    batch = self._rows(responses)
    weights = batch['weights'][:, 1:]
    said = self._said(params, batch)
    kl = ((said['old_logprobs'] - said['reference_logprobs']) * weights).sum() / len(
      responses
    )  # padding weighs nothing
    return float(kl), float(-(said['reference_logprobs'] * weights).sum() / weights.sum())

  def _rows(self, responses: Sequence[Response]) -> Batch:
    """Responses behind their prompts, filled up with rows of padding to whole minibatches."""
    context = self.prompt_length + self.writing.max_new_tokens - 1
    rows = Answers([answered(response.prompt, response.tokens) for response in responses], context)
    places = np.arange(-(-len(responses) // self.minibatch_size) * self.minibatch_size)
    return rows.batch(np.where(places < len(responses), places, -1))

  def _said(self, params: Params, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What policy, reference and critic say of the texts, read as many at a time as in an update."""
    size = self.minibatch_size
    texts = {name: batch[name] for name in ('tokens', 'weights', 'layout')}
    starts = range(0, len(batch['tokens']), size)
    parts = [
      self._read(params, self.reference, jax.tree.map(lambda array, start=start: array[start : start + size], texts))
      for start in starts
    ]
    whole: dict[str, np.ndarray] = jax.tree.map(lambda *arrays: np.concatenate(arrays), *jax.device_get(parts))
    return whole

  def _lines(self, number: int) -> list[dict[str, Any]]:
    """Of the history, what is older than rollout `number`."""
    texts = self.history.read_text().splitlines() if self.history.exists() else []
    return [line for line in map(json.loads, texts) if line['rollout'] < number]

  @contextlib.contextmanager
  def _timed(self, name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    self._add(name, time.perf_counter() - began)

  def _add(self, name: str, seconds: float) -> None:
    self.seconds[name] = self.seconds.get(name, 0.0) + seconds


def _read(
  model: LanguageModel, temperature: float, chunk: int | None, params: Params, reference: Params, batch: Batch
) -> dict[str, jax.Array]:
  inputs, layout, targets, _ = next_token(batch)
  has_values = isinstance(model, ActorCritic)
  found: Any = model.apply(params, inputs, layout, method='features_and_values' if has_values else 'features')
  hidden, unembed, last = found
  policy = LanguageModel(model.config)
  said = {
    'old_logprobs': logprobs_of(unembed, hidden, targets, temperature=temperature, chunk=chunk),
    'reference_logprobs': response_logprobs(policy, reference, batch, temperature=temperature, chunk=chunk),
  }
  return {**said, 'values': last} if has_values else said
