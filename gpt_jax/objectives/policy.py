"""Learning from rewards: the policy gradient, clipped, on responses that the policy wrote itself."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gpt_jax.objectives.likelihood import Model, map_over_chunks, next_token, sum_over_chunks
from gpt_jax.types import Batch, LossFn, Mean, Metrics, Params


def policy_loss(
  model: Model,
  *,
  clip_range: float | int = 0.2,
  value_clip_range: float | int = 0.2,
  value_coefficient: float | int = 0.1,
  entropy_coefficient: float | int = 0.0,
  kl_coefficient: float | int = 0.0,
  temperature: float | int = 1.0,
  by_response: bool = False,
  chunk: int | None = None,
) -> LossFn:
  """PPO's loss (Schulman et al. 2017, equations 7 and 9), a mean over the tokens of responses.

  -min(r A, clip(r, 1 - e, 1 + e) A), with r = exp(log pi - old_logprobs); plus value_coefficient times
  max((V - R)^2, (clip(V, V_old - e_v, V_old + e_v) - R)^2) / 2, where the batch has `values` and `returns`; less
  entropy_coefficient times the entropy; plus kl_coefficient times GRPO's estimate of the KL to the reference (equation
  4), exp(d) - d - 1 with d = reference_logprobs - log pi.

  The batch has, besides the keys of `next_token`, what frozen models said, all [B, T - 1]: old_logprobs, advantages and
  reference_logprobs; `values` and `returns`; and `scores` [B] of the responses.

  Args:
    model: `features` as of a language model; where there are returns, `features_and_values` gives [B, T] values too.
    clip_range: e. value_clip_range: e_v.
    value_coefficient: of the squared error of values.
    entropy_coefficient: of the entropy, which is kept up.
    kl_coefficient: of the KL in the loss, which PPO has in the rewards instead.
    temperature: that responses were drawn at: it divides the logits.
    by_response: a mean over responses of their means over tokens (GRPO, equation 3), not over all tokens.
    chunk: places of every row whose logits exist at once; None: all.

  Metrics: policy_loss, value_loss, entropy, ratio, approximate_kl ((log pi - old)^2 / 2), clip_fraction,
  value_clip_fraction and explained_variance of the update; reward, kl (of the policy that wrote to the reference, in
  nats a response) and length of what was written.
  """

  def total(unembed: Any, hidden: jax.Array, labels: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    targets, weights, shares, old, advantages, reference = labels
    logits = unembed(hidden) / temperature
    logprobs, entropy = _of_targets(logits, targets)
    ratio = jnp.exp(logprobs - old)
    losses = -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - clip_range, 1 + clip_range) * advantages)
    d = reference - logprobs
    penalty = kl_coefficient * (jnp.exp(d) - d - 1) - entropy_coefficient * entropy
    sums = {
      'policy_loss': jnp.sum(losses * shares),
      'entropy': jnp.sum(entropy * weights),
      'ratio': jnp.sum(ratio * weights),
      'approximate_kl': jnp.sum(jnp.square(logprobs - old) * weights) / 2,
      'clip_fraction': jnp.sum((jnp.abs(ratio - 1) > clip_range) * weights),
    }
    return jnp.sum((losses + penalty) * shares), sums

  def loss_fn(params: Params, batch: Batch, rng: jax.Array) -> tuple[Mean, Metrics]:
    inputs, layout, targets, weights = next_token(batch)
    method = 'features_and_values' if 'returns' in batch else 'features'
    found: Any = model.apply(params, inputs, layout, method=method, rngs={'dropout': rng})
    number = jnp.sum(weights)
    lengths = jnp.sum(weights, axis=1)
    shares = weights / jnp.maximum(lengths, 1)[:, None] if by_response else weights
    reference = batch['reference_logprobs']
    labels = (targets, weights, shares, batch['old_logprobs'], batch['advantages'], reference)
    loss, sums = sum_over_chunks(total, chunk, found[1], found[0], labels)
    weight = jnp.sum(shares)
    metrics = {name: Mean(value, weight if name == 'policy_loss' else number) for name, value in sums.items()}
    if 'returns' in batch:
      errors, of_values = _value_errors(found[-1], batch, weights, value_clip_range)
      loss += value_coefficient * jnp.sum(errors * shares)
      metrics |= of_values
    responses = jnp.sum(lengths > 0).astype(jnp.float32)
    metrics['reward'] = Mean(jnp.sum(batch['scores'] * (lengths > 0)), responses)
    metrics['kl'] = Mean(jnp.sum((batch['old_logprobs'] - reference) * weights), responses)
    metrics['length'] = Mean(number, responses)
    return Mean(loss, weight), metrics

  return loss_fn


def _of_targets(
  logits: Float[Array, 'B T V'], targets: Int[Array, 'B T']
) -> tuple[Float[Array, 'B T'], Float[Array, 'B T']]:
  """Log-probability of each target, and the entropy there."""
  every = jax.nn.log_softmax(logits)
  entropy = -jnp.sum(jnp.exp(every) * every, axis=-1)
  return jnp.take_along_axis(every, targets[..., None], axis=-1)[..., 0], entropy


def _value_errors(
  values: Float[Array, 'B T'], batch: Batch, weights: Float[Array, 'B T'], clip_range: float | int
) -> tuple[Float[Array, 'B T'], Metrics]:
  """Half of the squared errors, clipped, and what is told of them."""
  returns, old = batch['returns'], batch['values']
  near = jnp.clip(values, old - clip_range, old + clip_range)
  plain, clipped = jnp.square(values - returns), jnp.square(near - returns)
  errors = jnp.maximum(plain, clipped) / 2
  number = jnp.sum(weights)
  mean = jnp.sum(returns * weights) / jnp.maximum(number, 1)
  spread = jnp.sum(jnp.square(returns - mean) * weights)
  return errors, {
    'value_loss': Mean(jnp.sum(errors * weights), number),
    'value_clip_fraction': Mean(jnp.sum((clipped > plain) * weights), number),
    'explained_variance': Mean(spread - jnp.sum(plain * weights), spread),
  }


def response_logprobs(
  model: Model, params: Params, batch: Batch, *, temperature: float | int = 1.0, chunk: int | None = None
) -> Float[Array, 'B T']:
  """log pi of the tokens that `next_token` predicts, logits for `chunk` places of every row at a time."""
  inputs, layout, targets, _ = next_token(batch)
  hidden, unembed, _ = model.apply(params, inputs, layout, method='features')
  return logprobs_of(unembed, hidden, targets, temperature=temperature, chunk=chunk)


def logprobs_of(
  unembed: Any,
  hidden: Float[Array, 'B T D'],
  targets: Int[Array, 'B T'],
  *,
  temperature: float | int = 1.0,
  chunk: int | None = None,
) -> Float[Array, 'B T']:
  """`response_logprobs` where hidden states are at hand."""

  def piece(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
    logits = unembed(inputs[0]) / temperature
    return jnp.take_along_axis(logits, inputs[1][..., None], axis=-1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)

  found: jax.Array = map_over_chunks(piece, chunk, (hidden, targets))
  return found


def with_pretraining(policy: LossFn, pretraining: LossFn, coefficient: float | int) -> LossFn:
  """PPO-ptx: the policy's loss, and `coefficient` times that of pretraining (Ouyang et al. 2022, equation 2).

  The batch has a batch of text under `pretraining`. Metric: pretraining_nll, in nats a token.
  """

  def loss_fn(params: Params, batch: Batch, rng: jax.Array) -> tuple[Mean, Metrics]:
    loss, metrics = policy(params, batch, rng)
    nll, _ = pretraining(params, batch['pretraining'], rng)
    return Mean(loss.total + coefficient * nll.value * loss.weight, loss.weight), {**metrics, 'pretraining_nll': nll}

  return loss_fn
