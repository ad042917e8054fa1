"""The losses by which a small model learns the distributions of a large one."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gpt_jax.objectives.likelihood import Model, cross_entropy, next_token, sum_over_chunks
from gpt_jax.types import Batch, LossFn, Mean, Metrics, Params

Direction = Literal['forward', 'reverse']

LEAST_REST = 1e-6
"""The least probability that the tokens the teacher did not name have together: less is lost in float32's rounding."""


def teacher_top(logits: Float[Array, '*B V'], k: int, temperature: float) -> tuple[Array, Array]:
  """The k likeliest tokens [*B, k], likeliest first, and their log-probabilities at this temperature."""
  found, tokens = jax.lax.top_k(logits / temperature, k)
  return tokens, found - jax.nn.logsumexp(logits / temperature, axis=-1, keepdims=True)


def divergence(
  logits: Float[Array, '*B V'],
  tokens: Int[Array, '*B k'],
  logprobs: Float[Array, '*B k'],
  direction: Direction,
) -> Float[Array, '*B']:
  """KL divergence in nats of the student q and the teacher p, of whom k tokens are known.

  All other tokens count as one outcome, with what probability is left: the divergence of the two distributions over
  k + 1 outcomes. It is at most that over the vocabulary, and equal where the others have the same proportions in both.
  `forward` is KL(p || q) (Hinton et al. 2015), which spreads q over all that p does; `reverse` is KL(q || p) (Gu et al.
  2024), which keeps q to where p is large.
  """
  log_z = jax.nn.logsumexp(logits, axis=-1)
  log_q = jnp.take_along_axis(logits, tokens, axis=-1) - log_z[..., None]
  if tokens.shape[-1] < logits.shape[-1]:
    named = jnp.put_along_axis(jnp.zeros(logits.shape, bool), tokens, True, axis=-1, inplace=False)
    rest = jax.nn.logsumexp(jnp.where(named, -jnp.inf, logits), axis=-1) - log_z
    left = jnp.log(jnp.maximum(1 - jnp.sum(jnp.exp(logprobs), axis=-1), LEAST_REST))
    log_q = jnp.concatenate([log_q, rest[..., None]], axis=-1)
    logprobs = jnp.concatenate([logprobs, left[..., None]], axis=-1)
  first, second = (logprobs, log_q) if direction == 'forward' else (log_q, logprobs)
  return jnp.sum(jnp.exp(first) * (first - second), axis=-1)


def distillation_loss(
  model: Model,
  *,
  direction: Direction = 'forward',
  temperature: float = 1.0,
  mix: float = 0.0,
  chunk: int | None = None,
) -> LossFn:
  """(1 - mix) tau^2 KL + mix (-log q(next token)), a mean over the tokens to be predicted.

  The batch has, besides the keys of `next_token`, what the teacher says after each input: `teacher_tokens` and
  `teacher_logprobs` [B, T, k], its likeliest tokens and their log-probabilities at `temperature` tau (`teacher_top`).
  The student's logits are divided by tau too; tau^2 keeps the size of gradients (Hinton et al. 2015, section 2). Logits
  exist for `chunk` places of every row at a time (None: all).

  Metrics: `kl` at tau, `nll` of the next token; `agreement`, how often both find the same token likeliest; `overlap`,
  the sum of min(p, q) over the teacher's tokens at tau. At tau = 1 a token that the student draws is accepted by
  speculative sampling at least so often (Leviathan et al. 2023, theorem 3.5).
  """

  def total(unembed: Any, hidden: jax.Array, labels: Any) -> tuple[jax.Array, Any]:
    targets, weights, tokens, logprobs = labels
    logits = unembed(hidden)
    nll, _ = cross_entropy(logits, targets)
    cooled = logits / temperature
    kl = divergence(cooled, tokens, logprobs, direction)
    log_q = jnp.take_along_axis(cooled, tokens, axis=-1) - jax.nn.logsumexp(cooled, axis=-1, keepdims=True)
    overlap = jnp.sum(jnp.exp(jnp.minimum(log_q, logprobs)), axis=-1)
    agreement = jnp.argmax(logits, axis=-1) == tokens[..., 0]
    means = {'kl': kl, 'nll': nll, 'agreement': agreement, 'overlap': overlap}
    loss = jnp.sum(((1 - mix) * temperature**2 * kl + mix * nll) * weights)
    return loss, {name: jnp.sum(value * weights) for name, value in means.items()}

  def loss_fn(params: Params, batch: Batch, rng: jax.Array) -> tuple[Mean, Metrics]:
    inputs, layout, targets, weights = next_token(batch)
    hidden, unembed, _ = model.apply(params, inputs, layout, method='features', rngs={'dropout': rng})
    labels = (targets, weights, batch['teacher_tokens'], batch['teacher_logprobs'])
    loss, sums = sum_over_chunks(total, chunk, unembed, hidden, labels)
    weight = jnp.sum(weights)
    return Mean(loss, weight), {name: Mean(value, weight) for name, value in sums.items()}

  return loss_fn
