"""The likelihood of text: the next-token loss of pretraining and instruction tuning."""

from collections.abc import Callable
import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gpt_jax.types import Batch, Layout, LossFn, Mean, Metrics, Params

Unembed = Callable[[Float[Array, '*B D']], Float[Array, '*B V']]
"""A pytree that maps hidden states to logits."""


@runtime_checkable
class Model(Protocol):
  """A module whose method `features(tokens, layout)` gives hidden states, the unembedding and a cache."""

  def apply(self, variables: Params, *args: Any, **kwargs: Any) -> Any: ...


def next_token(batch: Batch) -> tuple[Int[Array, 'B T'], Layout | None, Int[Array, 'B T'], Float[Array, 'B T']]:
  """Inputs, their layout, targets and target weights of a batch: the one place where tokens are shifted.

  Targets are the tokens, or where there are others, the labels.
  """
  tokens, layout = batch['tokens'], batch.get('layout')
  inputs = None if layout is None else jax.tree.map(lambda x: x[:, :-1], layout)
  return tokens[:, :-1], inputs, batch.get('labels', tokens)[:, 1:], batch['weights'][:, 1:]


def tokens_ahead(batch: Batch, number: int) -> tuple[Int[Array, 'B T M'], Float[Array, 'B T M']]:
  """For each input of `next_token`, the tokens 2 .. number + 1 places on, and the weights of guessing them there.

  A token weighs what predicting it weighs; nothing where it lies behind the row's end or in another segment.
  """
  tokens, layout = batch['tokens'], batch.get('layout')
  length = tokens.shape[1] - 1
  ahead = lambda x: jnp.stack(
    [jnp.pad(x, ((0, 0), (0, k)))[:, 1 + k : 1 + k + length] for k in range(1, number + 1)], axis=-1
  )
  weights = ahead(batch['weights'])
  if layout is not None:
    weights = weights * (ahead(layout.segment) == layout.segment[:, :-1, None])
  return ahead(tokens), weights


def cross_entropy(
  logits: Float[Array, '*B V'], targets: Int[Array, '*B'], z_loss: float = 0.0
) -> tuple[Float[Array, '*B'], Float[Array, '*B']]:
  """-log p(target), and z_loss * log(Z)^2, which keeps the normaliser Z near 1 (PaLM, section 5)."""
  log_z = jax.nn.logsumexp(logits, axis=-1)
  target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return log_z - target, z_loss * log_z**2


def next_token_loss(model: Model, *, z_loss: float = 0.0, chunk: int | None = None) -> LossFn:
  """The weighted mean of -log p(next token) in nats, plus z-loss.

  Logits are made for `chunk` places of every row at a time (None: all), and their gradients at once, so that [B, T, V]
  never exists. The metric `loss` has the z-loss in it; `nll` is the likelihood alone.
  """

  def loss_fn(params: Params, batch: Batch, rng: jax.Array) -> tuple[Mean, Metrics]:
    inputs, layout, targets, weights = next_token(batch)
    hidden, unembed, _ = model.apply(params, inputs, layout, method='features', rngs={'dropout': rng})
    loss, nll = of_hidden(unembed, hidden, targets, weights, z_loss=z_loss, chunk=chunk)
    return loss, {'nll': nll} if z_loss else {}

  return loss_fn


def of_hidden(
  unembed: Unembed,
  hidden: Float[Array, 'B T D'],
  targets: Int[Array, 'B T'],
  weights: Float[Array, 'B T'],
  *,
  z_loss: float = 0.0,
  chunk: int | None = None,
) -> tuple[Mean, Mean]:
  """The loss of `next_token_loss` where hidden states are at hand, and the likelihood alone."""

  def total(unembed: Unembed, hidden: jax.Array, labels: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    nll, z = cross_entropy(unembed(hidden), labels[0], z_loss)
    return jnp.sum((nll + z) * labels[1]), jnp.sum(nll * labels[1])

  loss, nll = sum_over_chunks(total, chunk, unembed, hidden, (targets, weights))
  weight = jnp.sum(weights)
  return Mean(loss, weight), Mean(nll, weight)


Total = Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]]


def sum_over_chunks(
  total: Total, chunk: int | None, unembed: Any, hidden: Float[Array, 'B T *D'], labels: Any
) -> tuple[Float[Array, ''], Any]:
  """`chunked_sum` of any length, filled up with zeros: what has weight 0 in the labels must add nothing."""
  length = hidden.shape[1]
  chunk = min(chunk or length, length)
  pad = lambda x: jnp.pad(x, [(0, 0), (0, -length % chunk)] + [(0, 0)] * (x.ndim - 2))
  return chunked_sum(total, chunk, unembed, pad(hidden), jax.tree.map(pad, labels))


def map_over_chunks(function: Callable[[Any], Any], chunk: int | None, inputs: Any) -> Any:
  """function(inputs), arrays [B, T, ...] both, of `chunk` places of every row at a time; it sees each place alone."""
  length = jax.tree.leaves(inputs)[0].shape[1]
  size = min(chunk or length, length)
  pad = lambda x: jnp.pad(x, [(0, 0), (0, -length % size)] + [(0, 0)] * (x.ndim - 2))
  pieces = jax.tree.map(lambda x: jnp.moveaxis(pad(x).reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0), inputs)
  found = jax.lax.map(function, pieces)
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :length], found)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def chunked_sum(
  total: Total, chunk: int, unembed: Any, hidden: Float[Array, 'B T *D'], labels: Any
) -> tuple[Float[Array, ''], Any]:
  """The sum over chunks of T of `total(unembed, hidden, labels) -> (value, other)`; chunk must divide T.

  `unembed` and `other` may be any trees of arrays.

  Differentiated, it takes the gradient of each chunk in the forward pass, while the logits are at hand: the backward
  pass neither keeps nor recomputes them. `other` has no gradient.
  """
  return _scan(lambda piece: (total(unembed, *piece), ()), (hidden, labels), chunk)[0]


def _forward(total: Total, chunk: int, unembed: Any, hidden: jax.Array, labels: Any) -> Any:
  def gradient(piece: Any) -> Any:
    result, (for_unembed, for_hidden) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(unembed, *piece)
    return (result, for_unembed), for_hidden

  (result, for_unembed), for_hidden = _scan(gradient, (hidden, labels), chunk)
  for_hidden = jnp.moveaxis(for_hidden, 0, 1).reshape(hidden.shape)
  return result, (for_unembed, for_hidden)


def _backward(total: Total, chunk: int, gradients: Any, cotangents: Any) -> Any:
  for_unembed, for_hidden = jax.tree.map(lambda g: (g * cotangents[0]).astype(g.dtype), gradients)
  return for_unembed, for_hidden, None


chunked_sum.defvjp(_forward, _backward)


def _scan(function: Callable[[Any], tuple[Any, Any]], inputs: Any, chunk: int) -> tuple[Any, Any]:
  """Runs `function` over chunks of T; sums what it returns first and stacks what it returns second."""
  pieces = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0), inputs)
  sums, first = function(jax.tree.map(lambda x: x[0], pieces))

  def step(sums: Any, piece: Any) -> tuple[Any, Any]:
    summed, stacked = function(piece)
    return jax.tree.map(jnp.add, sums, summed), stacked

  sums, rest = jax.lax.scan(step, sums, jax.tree.map(lambda x: x[1:], pieces))
  return sums, jax.tree.map(lambda x, others: jnp.concatenate([x[None], others]), first, rest)
