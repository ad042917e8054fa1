"""How the next token is drawn from logits."""

from collections.abc import Callable
import dataclasses

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

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


def min_p(logits: Float[Array, 'B V'], p: float | int) -> Float[Array, 'B V']:
  """The tokens at least p times as likely as the likeliest (Nguyen et al. 2024); the others become -inf."""
  return jnp.where(logits >= jnp.max(logits, axis=-1, keepdims=True) + jnp.log(p), logits, -jnp.inf)


@struct.dataclass
class Seen:
  """The text that a token is to follow, prompt included, as what changes logits may read it."""

  tokens: Int[Array, 'B S']
  valid: Bool[Array, 'B S']
  """False behind the end of a row."""


Processor = Callable[[Float[Array, 'B V'], Seen], Float[Array, 'B V']]
"""Logits to logits, each row on its own; a plain function defined once, as each new one is compiled anew."""


@dataclasses.dataclass(frozen=True)
class RepetitionPenalty:
  """Logits of tokens that were seen are divided by the penalty, negative ones multiplied (CTRL, section 4.1)."""

  penalty: float | int

  def __call__(self, logits: Float[Array, 'B V'], seen: Seen) -> Float[Array, 'B V']:
    rows = jnp.arange(logits.shape[0])[:, None]
    repeated = jnp.zeros(logits.shape, bool).at[rows, seen.tokens].max(seen.valid)
    return jnp.where(repeated, jnp.where(logits > 0, logits / self.penalty, logits * self.penalty), logits)


def likeliest(logits: Float[Array, '*B V']) -> Int[Array, '*B']:
  """The token of the largest logit, of equals the first, as argmax: which XLA takes number by number on CPUs."""
  number = logits.shape[-1]
  largest = logits == jnp.max(logits, axis=-1, keepdims=True)
  return jnp.min(jnp.where(largest, jnp.arange(number, dtype=jnp.int32), number - 1), axis=-1)


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Processors, then temperature, top-k, top-p and min-p: the order of Hugging Face's transformers.

  Raises:
    UserError: a number outside its range.
  """

  temperature: float | int = 1.0
  """Divides the logits; 0 is greedy: the most likely token, the first of equals."""
  top_k: int | None = None
  top_p: float | int | None = None
  min_p: float | int | None = None
  processors: tuple[Processor, ...] = ()
  """Functions of logits and the text before, taken in turn: also before the greedy choice."""

  def __post_init__(self) -> None:
    if not 0 <= self.temperature < float('inf'):
      raise UserError(f'temperature = {self.temperature} must be 0 (greedy) or a positive number')
    if self.top_k is not None and self.top_k < 1:
      raise UserError(f'top_k = {self.top_k} must be at least 1; leave it out to keep all tokens')
    if self.top_p is not None and not 0 < self.top_p <= 1:
      raise UserError(f'top_p = {self.top_p} must be above 0 and at most 1; leave it out to keep all tokens')
    if self.min_p is not None and not 0 < self.min_p <= 1:
      raise UserError(f'min_p = {self.min_p} must be above 0 and at most 1; leave it out to keep all tokens')

  @property
  def greedy(self) -> bool:
    return self.temperature == 0

  def processed(self, logits: Float[Array, 'B V'], seen: Seen) -> Float[Array, 'B V']:
    """What the processors make of logits."""
    for processor in self.processors:
      logits = processor(logits, seen)
    return logits

  def log_probabilities(self, logits: Float[Array, 'B V']) -> Float[Array, 'B V']:
    """log of the distribution that is drawn from, of processed logits; -inf for tokens that can not be drawn."""
    if self.greedy:
      best = jax.nn.one_hot(likeliest(logits), logits.shape[-1], dtype=bool)
      return jnp.where(best, 0.0, -jnp.inf)
    logits = logits / self.temperature
    if self.top_k is not None:
      logits = top_k(logits, self.top_k)
    if self.top_p is not None and self.top_p < 1:
      logits = top_p(logits, self.top_p)
    if self.min_p is not None:
      logits = min_p(logits, self.min_p)
    return jax.nn.log_softmax(logits)

  def draw(self, keys: Key[Array, 'B'], logits: Float[Array, 'B V']) -> Int[Array, 'B']:
    """One token a row of processed logits, each by its own key."""
    if self.greedy:
      return likeliest(logits)
    return jax.vmap(jax.random.categorical)(keys, self.log_probabilities(logits))
