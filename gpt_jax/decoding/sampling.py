"""How the next token is drawn from logits."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from gpt_jax.types import UserError


def top_k(logits: Float[Array, 'B V'], k: int) -> Float[Array, 'B V']:
  """The k highest logits of each row, and all that equal the lowest of them; the others become -inf."""
  lowest = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
  return jnp.where(logits >= lowest, logits, -jnp.inf)


def top_p(logits: Float[Array, 'B V'], p: float | int) -> Float[Array, 'B V']:
  """The nucleus of each row (Holtzman et al. 2020, section 3.1): the fewest tokens whose mass is at least p.

  The most likely token always stays; the tokens outside become -inf.
  """
  order = jnp.argsort(logits, axis=-1, descending=True)
  mass = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1))
  kept = jnp.cumsum(mass, axis=-1) - mass < p
  rows = jnp.arange(logits.shape[0])[:, None]
  return jnp.where(jnp.zeros_like(kept).at[rows, order].set(kept), logits, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Temperature, then top-k, then top-p: the order of Hugging Face's transformers.

  Raises:
    UserError: a number outside its range.
  """

  temperature: float | int = 1.0
  """Divides the logits; 0 is greedy: the most likely token, the first of equals."""
  top_k: int | None = None
  top_p: float | int | None = None

  def __post_init__(self) -> None:
    if not 0 <= self.temperature < float('inf'):
      raise UserError(f'temperature = {self.temperature} must be 0 (greedy) or a positive number')
    if self.top_k is not None and self.top_k < 1:
      raise UserError(f'top_k = {self.top_k} must be at least 1; leave it out to keep all tokens')
    if self.top_p is not None and not 0 < self.top_p <= 1:
      raise UserError(f'top_p = {self.top_p} must be above 0 and at most 1; leave it out to keep all tokens')

  def log_probabilities(self, logits: Float[Array, 'B V']) -> Float[Array, 'B V']:
    """log of the distribution that is drawn from; -inf for tokens that can not be drawn."""
    if self.temperature == 0:
      likeliest = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
      return jnp.where(likeliest, 0.0, -jnp.inf)
    logits = logits / self.temperature
    if self.top_k is not None:
      logits = top_k(logits, self.top_k)
    if self.top_p is not None and self.top_p < 1:
      logits = top_p(logits, self.top_p)
    return jax.nn.log_softmax(logits)

  def draw(self, keys: Key[Array, 'B'], logits: Float[Array, 'B V']) -> Int[Array, 'B']:
    """One token a row, each by its own key."""
    if self.temperature == 0:
      return jnp.argmax(logits, axis=-1)
    return jax.vmap(jax.random.categorical)(keys, self.log_probabilities(logits))
