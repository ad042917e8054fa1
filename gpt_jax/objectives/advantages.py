"""From the scores of whole responses to what each of their tokens was worth.

Arrays over tokens are aligned with `likelihood.next_token`: place t is the prediction of token t + 1. Weights are 1 at
the places of a response, which follow one another, and 0 elsewhere.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def token_rewards(
  scores: Float[Array, 'B'],
  logprobs: Float[Array, 'B T'],
  reference_logprobs: Float[Array, 'B T'],
  weights: Float[Array, 'B T'],
  kl_coefficient: Float[Array, ''] | float | int,
) -> Float[Array, 'B T']:
  """-beta (log pi(a_t) - log pi_ref(a_t)) at each token, and the score at the last (Ziegler et al. 2019, eq. 2)."""
  penalty = -kl_coefficient * (logprobs - reference_logprobs) * weights
  return penalty + scores[:, None] * last_token(weights)


def last_token(weights: Float[Array, 'B T']) -> Float[Array, 'B T']:
  """1 at the last place of each response."""
  after = jnp.pad(weights, ((0, 0), (0, 1)))[:, 1:]
  return weights * (1 - after)


class Advantages(NamedTuple):
  """What tokens were worth."""

  advantages: Float[Array, 'B T']
  """Over what was expected."""
  returns: Float[Array, 'B T']
  """In all: what the values are to become."""


def gae(
  rewards: Float[Array, 'B T'],
  values: Float[Array, 'B T'],
  weights: Float[Array, 'B T'],
  *,
  discount: float | int = 1.0,
  decay: float | int = 0.95,
) -> Advantages:
  """Generalised advantage estimation (Schulman et al. 2016, equation 16); nothing follows a response.

  A_t = delta_t + discount decay A_{t+1}, with delta_t = r_t + discount V_{t+1} - V_t; returns are A + V.
  """
  masked = values * weights
  following = jnp.pad(masked, ((0, 0), (0, 1)))[:, 1:]
  deltas = rewards * weights + discount * following - masked

  def step(later: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    delta, weight = now
    advantage = weight * (delta + discount * decay * later)
    return advantage, advantage

  _, found = jax.lax.scan(step, jnp.zeros_like(rewards[:, 0]), (deltas.T, weights.T), reverse=True)
  return Advantages(found.T, (found.T + values) * weights)


def whiten(x: Float[Array, '*B'], weights: Float[Array, '*B'], *, shift_mean: bool = True) -> Float[Array, '*B']:
  """Divided by its deviation, of variance over N, and around 0; without the shift, around its mean as before.

  lm-human-preferences (Ziegler et al. 2019) whitens advantages with the shift, and rewards without.
  """
  total = jnp.maximum(jnp.sum(weights), 1)
  mean = jnp.sum(x * weights) / total
  variance = jnp.sum(jnp.square(x - mean) * weights) / total
  whitened = (x - mean) * jax.lax.rsqrt(variance + 1e-8)
  return (whitened if shift_mean else whitened + mean) * weights


def group_relative(scores: Float[Array, 'B'], size: int, *, scaled: bool = True) -> Float[Array, 'B']:
  """(s - mean) / deviation among the `size` responses to one prompt, which follow one another (GRPO, section 4.1.2).

  The deviation is over N - 1. Unscaled, the mean alone is taken off (Liu et al. 2025, Dr. GRPO, section 3.2).
  """
  groups = scores.reshape(-1, size)
  apart = groups - jnp.mean(groups, axis=1, keepdims=True)
  if scaled:
    apart = apart / (jnp.std(groups, axis=1, keepdims=True, ddof=1) + 1e-4)
  return apart.reshape(-1)


def leave_one_out(scores: Float[Array, 'B'], size: int) -> Float[Array, 'B']:
  """A score less the mean of the others of its group (RLOO; Ahmadian et al. 2024, equation 7)."""
  groups = scores.reshape(-1, size)
  others = (jnp.sum(groups, axis=1, keepdims=True) - groups) / (size - 1)
  return (groups - others).reshape(-1)


def adapted(
  coefficient: float | int, kl: float | int, *, target: float | int, horizon: float | int, episodes: int
) -> float | int:
  """The next KL coefficient: grows where the KL is above the target (Ziegler et al. 2019, section 2.2).

  beta (1 + clip(kl / target - 1, -0.2, 0.2) episodes / horizon): with 0.1 for episodes / horizon the paper's.
  """
  error = min(max(kl / target - 1, -0.2), 0.2)
  return coefficient * (1 + error * episodes / horizon)
