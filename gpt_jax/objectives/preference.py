"""What people prefer: rewards, or policies themselves, learned from how they rank responses."""

from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gpt_jax.objectives.likelihood import Model
from gpt_jax.objectives.policy import response_logprobs
from gpt_jax.types import Batch, LossFn, Mean, Metrics, Params


@runtime_checkable
class Rewards(Protocol):
  """A model whose `apply(params, tokens [B, T], layout)` is a number for each text, [B]."""

  def apply(self, variables: Params, *args: Any, **kwargs: Any) -> Any: ...


def rewards_of(model: Rewards, params: Params, batch: Batch, rng: jax.Array) -> Float[Array, 'B K']:
  """The reward of every response, each of which is read once; `rng` is for dropout."""
  rows, responses = batch['tokens'].shape[:2]
  flat = lambda x: x.reshape(rows * responses, *x.shape[2:])
  found = model.apply(params, flat(batch['tokens']), jax.tree.map(flat, batch['layout']), rngs={'dropout': rng})
  return found.reshape(rows, responses)


def preferred(batch: Batch) -> Bool[Array, 'B K K']:
  """Whether response i was ranked above response j; ties are no comparison."""
  scores, real = batch['scores'], batch['weights'] > 0
  return (scores[:, :, None] > scores[:, None, :]) & real[:, :, None] & real[:, None, :]


def ranking_loss(model: Rewards, *, margin: float = 0.0) -> LossFn:
  """-1 / C(K, 2) * sum over pairs of log sigmoid(r_w - r_l - margin (s_w - s_l)), a mean over rankings.

  All pairs of a ranking are of one batch and come from K readings (Ouyang et al. 2022, equation 1); pairs that tie are
  dropped from the sum. The margin grows with the difference of the scores s (Touvron et al. 2023, section 3.2.2: scores
  of 0 to 3 and a margin of 1 or 1/3 are its large and its small one).

  Metric: accuracy, how often the better of a pair has the higher reward.
  """

  def loss_fn(params: Params, batch: Batch, rng: jax.Array) -> tuple[Mean, Metrics]:
    return _of_rewards(rewards_of(model, params, batch, rng), batch, margin)

  return loss_fn


def _of_rewards(rewards: Float[Array, 'B K'], batch: Batch, margin: float) -> tuple[Mean, Metrics]:
  better = preferred(batch)
  apart = rewards[:, :, None] - rewards[:, None, :]
  scores = batch['scores'][:, :, None] - batch['scores'][:, None, :]
  losses = -jax.nn.log_sigmoid(apart - margin * scores)
  return _over_pairs(losses, better, batch), {'accuracy': _mean(apart > 0, better)}


def _over_pairs(losses: Float[Array, 'B K K'], better: Bool[Array, 'B K K'], batch: Batch) -> Mean:
  """1 / C(K, 2) times the sum over pairs, a mean over rankings."""
  number = jnp.sum(batch['weights'], axis=1)
  pairs = number * (number - 1) / 2
  each = jnp.sum(jnp.where(better, losses, 0), axis=(1, 2)) / jnp.maximum(pairs, 1)
  return Mean(jnp.sum(each), jnp.sum(pairs > 0).astype(jnp.float32))


def log_likelihoods(model: Model, params: Params, batch: Batch, *, chunk: int | None = None) -> Float[Array, 'B K']:
  """log pi of every response of rankings, after its prompt, in nats; each is read once."""
  rows, responses = batch['tokens'].shape[:2]
  flat = lambda x: x.reshape(rows * responses, *x.shape[2:])
  texts = {name: jax.tree.map(flat, batch[of]) for name, of in (('tokens', 'tokens'), ('weights', 'said'))}
  texts['layout'] = jax.tree.map(flat, batch['layout'])
  found = response_logprobs(model, params, texts, chunk=chunk)
  return jnp.sum(found * texts['weights'][:, 1:], axis=1).reshape(rows, responses)


def dpo_loss(
  model: Model,
  *,
  beta: float | int = 0.1,
  label_smoothing: float | int = 0.0,
  form: Literal['sigmoid', 'ipo'] = 'sigmoid',
  by_token: bool = False,
  chunk: int | None = None,
) -> LossFn:
  """Learns from preferences without a reward model (Rafailov et al. 2023, equation 7).

  With h = log pi - reference_logprobs of whole responses, which the batch has [B, K], and d = h_w - h_l:
  -(1 - s) log sigmoid(beta d) - s log sigmoid(-beta d), s the label smoothing (Mitchell 2023, conservative DPO); or
  (d - 1 / (2 beta))^2, IPO (Azar et al. 2023, equation 17). All pairs of a ranking come from K readings, as in
  `ranking_loss`; of two responses it is the papers'. `by_token`: h is divided by the tokens of the response, as IPO's
  authors and TRL have it, so that beta is the same for long and short ones.

  Metrics: accuracy, how often the better of a pair has gained more; margin, beta d; and chosen_gain and rejected_gain,
  the means of h over pairs, in nats (a token, with `by_token`).
  """

  def loss_fn(params: Params, batch: Batch, rng: jax.Array) -> tuple[Mean, Metrics]:
    del rng
    gains = log_likelihoods(model, params, batch, chunk=chunk) - batch['reference_logprobs']
    if by_token:
      gains = gains / jnp.maximum(jnp.sum(batch['said'], axis=2), 1)
    better, apart = preferred(batch), gains[:, :, None] - gains[:, None, :]
    if form == 'ipo':
      losses = jnp.square(apart - 1 / (2 * beta))
    else:
      right, wrong = jax.nn.log_sigmoid(beta * apart), jax.nn.log_sigmoid(-beta * apart)
      losses = -(1 - label_smoothing) * right - label_smoothing * wrong
    return _over_pairs(losses, better, batch), {
      'accuracy': _mean(apart > 0, better),
      'margin': _mean(beta * apart, better),
      'chosen_gain': _mean(jnp.broadcast_to(gains[:, :, None], apart.shape), better),
      'rejected_gain': _mean(jnp.broadcast_to(gains[:, None, :], apart.shape), better),
    }

  return loss_fn


def ranking_metrics(model: Rewards, *, bins: int = 10) -> LossFn:
  """`ranking_loss` with what is measured once a reward model is trained.

  Metrics, besides accuracy: mean_reward and mean_square_reward, of all responses; best_reward, the mean of those that
  stand first in their rankings; and of the comparisons, both ways round, whose sigmoid(r_i - r_j) falls in bin k of
  [0, 1]: predicted_k, the mean of that, observed_k, how often i was preferred, and share_k, how many those are of all.
  """

  def loss_fn(params: Params, batch: Batch, rng: jax.Array) -> tuple[Mean, Metrics]:
    rewards, better = rewards_of(model, params, batch, rng), preferred(batch)
    loss, metrics = _of_rewards(rewards, batch, 0.0)
    compared = better | better.swapaxes(1, 2)
    predicted = jax.nn.sigmoid(rewards[:, :, None] - rewards[:, None, :])
    number = jnp.minimum((predicted * bins).astype(jnp.int32), bins - 1)
    real = batch['weights'] > 0
    first = real & (batch['scores'] >= jnp.max(jnp.where(real, batch['scores'], -jnp.inf), axis=1, keepdims=True))
    metrics['mean_reward'], metrics['mean_square_reward'] = _mean(rewards, real), _mean(jnp.square(rewards), real)
    metrics['best_reward'] = _mean(rewards, first)
    for k in range(bins):
      within = compared & (number == k)
      metrics[f'predicted_{k}'] = _mean(predicted, within)
      metrics[f'observed_{k}'] = _mean(better, within)
      metrics[f'share_{k}'] = _mean(within, compared)
    return loss, metrics

  return loss_fn


def _mean(values: jax.Array, where: Bool[Array, '...']) -> Mean:
  count = jnp.sum(where).astype(jnp.float32)
  return Mean(jnp.sum(jnp.where(where, values, 0)).astype(jnp.float32), count)
