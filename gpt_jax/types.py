"""The few types that flow through the program."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

Params = Mapping[str, Any]
"""A nested dict of arrays."""

Batch = Mapping[str, Any]
"""A dict of arrays. Keys: tokens [B, T]; weights [B, T], 1 where the token is to be predicted; layout (optional);
labels [B, T], what is to be predicted where that is not the token itself, as behind a blank (optional).

Of rankings: tokens, layout and said [B, K, T], of K responses to one prompt, said 1 at their own tokens; weights and
scores [B, K].
Of frozen models, what they say to the inputs, which are all tokens but the last: hidden [B, T - 1, D]; teacher_tokens
and teacher_logprobs [B, T - 1, k]; reference_logprobs [B, T - 1], or of whole responses [B, K].
Of a rollout, besides: old_logprobs, advantages, values, returns [B, T - 1]; scores [B]; pretraining, a batch of text.
"""


def shapes_at(shapes: Any, shardings: Any) -> Any:
  """A tree of shapes that say where their arrays are to lie."""
  return jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, shardings)


class UserError(Exception):
  """Bad input: the message, one line, names the field or file and the remedy; a program ends on it with code 2."""


class Diverged(UserError):
  """Training left the finite numbers: an error to who wanted the model, a result to who compares recipes."""


@struct.dataclass
class Mean:
  """A weighted mean that adds: over micro-batches, devices and the odd last batch of an evaluation."""

  total: Float[Array, '...']
  weight: Float[Array, '...']

  def __add__(self, other: 'Mean') -> 'Mean':
    return Mean(self.total + other.total, self.weight + other.weight)

  @property
  def value(self) -> Float[Array, '...']:
    """total / weight; 0 / 0 is 0: a batch in which nothing counts has no loss."""
    return self.total / jnp.where(self.weight == 0, 1, self.weight)


Metrics = dict[str, Mean]
LossFn = Callable[[Params, Batch, jax.Array], tuple[Mean, Metrics]]


@struct.dataclass
class Layout:
  """Where each token stands: all that a mask or a position encoding may ask about it.

  Its arrays are numpy's when made by data, jax's inside a model; a row is a row of the batch.
  """

  order: Int[Array | np.ndarray, 'B T']
  """Place in the row: what "before" means."""
  position: Int[Array | np.ndarray, 'B T']
  """Place in the text: what encodings turn by."""
  block: Int[Array | np.ndarray, 'B T']
  """Place within a GLM blank, 0 outside one."""
  segment: Int[Array | np.ndarray, 'B T']
  """Number of the packed document from 1, 0 for padding."""
  prefix: Bool[Array | np.ndarray, 'B T']
  """Read in both directions (GLM's part A)."""
  node: Int[Array | np.ndarray, 'B T'] | None = None
  """Number in a tree of candidates from 1, 0 for the text before it; None: there is no tree."""


def left_to_right(tokens: Int[Array | np.ndarray, 'B T']) -> Layout:
  """The layout of plain text: one document a row, no padding, read left to right."""
  order = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  zeros = jnp.zeros_like(order)
  return Layout(order, order, zeros, zeros + 1, zeros.astype(bool))
