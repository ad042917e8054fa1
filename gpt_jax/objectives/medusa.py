"""The loss of Medusa's heads, on the hidden states of a language model that stays as it is, or learns with them."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from gpt_jax.objectives.likelihood import Model, cross_entropy, next_token, of_hidden, sum_over_chunks, tokens_ahead
from gpt_jax.types import Batch, LossFn, Mean, Metrics, Params


def medusa_loss(
  model: Model,
  *,
  decay: float = 0.8,
  chunk: int | None = None,
  top: int = 5,
  vocabulary: Int[np.ndarray, 'G'] | None = None,
) -> LossFn:
  """sum over k = 1 .. M of decay^k (-log p_k(token t + 1 + k)), a mean over t (Cai et al. 2024, equation 1).

  `model.features(hidden)` gives what each head makes of hidden states, and the M maps from that to logits. The batch
  has, besides the keys of `next_token`, the frozen model's `hidden [B, T, D]` for its inputs; weights are those of
  `tokens_ahead`. The mean is over the places where head 1 has a token to guess: later heads have a few fewer, at the
  ends of rows. Logits are of one head and `chunk` places of every row at a time (None: all).

  `vocabulary`, in order, has the tokens that the heads tell apart (None: all). Other tokens are not learned from: no
  loss counts them, neither in its sum nor in its mean. No guess is right there, though.

  Metrics, k from 1: head_k_loss in nats, and head_k_top_i, i from 1 to `top`: how often the token is among the i
  likeliest, of equals those of smaller number.
  """

  def total(unembeddings: Any, hidden: jax.Array, labels: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, Any]:
    loss, losses, hits = jnp.zeros(()), [], []
    for k, unembed in enumerate(unembeddings):
      logits, targets, weights = unembed(hidden[..., k, :]), labels[0][..., k], labels[1][..., k]
      losses.append(jnp.sum(cross_entropy(logits, targets)[0] * weights))
      loss += decay ** (k + 1) * losses[k]
      hits.append(jnp.sum(among_likeliest(logits, targets, top) * weights[..., None], axis=(0, 1)))
    return loss, (jnp.stack(losses), jnp.stack(hits))

  def loss_fn(params: Params, batch: Batch, rng: jax.Array) -> tuple[Mean, Metrics]:
    del rng
    hidden, unembeddings = model.apply(params, batch['hidden'], method='features')
    targets, weights = tokens_ahead(batch, len(unembeddings))
    places = jnp.sum(weights, axis=(0, 1))
    if vocabulary is not None:
      number = jnp.minimum(jnp.searchsorted(vocabulary, targets), len(vocabulary) - 1)
      targets, weights = number, weights * (jnp.asarray(vocabulary)[number] == targets)
    loss, (losses, hits) = sum_over_chunks(total, chunk, unembeddings, hidden, (targets, weights))
    counts = jnp.sum(weights, axis=(0, 1))
    metrics = {}
    for k in range(len(unembeddings)):
      metrics[f'head_{k + 1}_loss'] = Mean(losses[k], counts[k])
      metrics |= {f'head_{k + 1}_top_{i + 1}': Mean(hits[k, i], places[k]) for i in range(top)}
    return Mean(loss, counts[0]), metrics

  return loss_fn


def joint_loss(model: Model, of_heads: LossFn, *, weight: float, chunk: int | None = None) -> LossFn:
  """The model's own loss and `weight` times that of its heads, for both to learn (Medusa-2; section 2.2.2, equation 2).

  Parameters are those of the model, with those of the heads as one more branch, `heads`; see `apart`. Both losses are
  means over the places of `next_token`, of which the last ones of a row have nothing for the heads to guess.

  Metrics: nll, the model's own loss in nats, and those of `of_heads`, a `medusa_loss`.
  """

  def loss_fn(params: Params, batch: Batch, rng: jax.Array) -> tuple[Mean, Metrics]:
    base, heads = apart(params)
    inputs, layout, targets, weights = next_token(batch)
    hidden, unembed, _ = model.apply(base, inputs, layout, method='features', rngs={'dropout': rng})
    nll, _ = of_hidden(unembed, hidden, targets, weights, chunk=chunk)
    guessed, metrics = of_heads(heads, {**batch, 'hidden': hidden}, rng)
    return Mean(nll.total + weight * guessed.total, nll.weight), {'nll': nll, **metrics}

  return loss_fn


def together(base: Params, heads: Params) -> Params:
  """The parameters of a model and its heads as one tree."""
  return {'params': {**base['params'], 'heads': heads['params']}}


def apart(params: Params) -> tuple[Params, Params]:
  """A model's own parameters, and those of its heads."""
  base = {name: branch for name, branch in params['params'].items() if name != 'heads'}
  return {'params': base}, {'params': params['params']['heads']}


def among_likeliest(logits: Float[Array, '*B V'], targets: Int[Array, '*B'], top: int) -> Bool[Array, '*B top']:
  """Whether each target is among the 1, 2, ..., `top` likeliest tokens; of equals, the one of smaller number first."""
  target = jnp.take_along_axis(logits, targets[..., None], axis=-1)
  before = jnp.arange(logits.shape[-1]) < targets[..., None]
  rank = jnp.sum((logits > target) | ((logits == target) & before), axis=-1)
  return rank[..., None] < 1 + jnp.arange(top)
