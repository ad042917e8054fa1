"""Position encodings: added to embeddings, turning queries and keys, or biasing scores."""

import dataclasses
import math

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from gpt_jax.types import Layout

# ---- added to the embeddings ---------------------------------------------------------------------------------------


class Learned(nn.Module):
  """A learned vector for each place in the text (GPT-1 to GPT-3)."""

  length: int
  stddev: float = 0.02

  @nn.compact
  def __call__(self, layout: Layout, dim: int) -> Float[Array, 'B T D']:
    table = self.param('table', nn.initializers.normal(self.stddev), (self.length, dim))
    return _looked_up(table, layout.position)


class Learned2D(nn.Module):
  """One learned vector for the place in the text and one for the place in the blank (GLM, section 2.3)."""

  length: int
  stddev: float = 0.02

  @nn.compact
  def __call__(self, layout: Layout, dim: int) -> Float[Array, 'B T D']:
    initializer = nn.initializers.normal(self.stddev)
    text = self.param('table', initializer, (self.length, dim))
    block = self.param('block_table', initializer, (self.length, dim))
    return _looked_up(text, layout.position) + _looked_up(block, layout.block)


def _looked_up(table: Float[Array, 'L D'], places: Int[Array | np.ndarray, 'B T']) -> Float[Array, 'B T D']:
  """Rows of a table; a place beyond it gives NaN, not the last row without a word."""
  return table.at[places].get(mode='fill', fill_value=jnp.nan)


# ---- turning queries and keys --------------------------------------------------------------------------------------


class Scaling:
  """Other frequencies, for rows longer than those of pretraining."""

  magnitude: float = 1.0
  """What turned queries and keys are multiplied with."""

  def __call__(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
    """Radians a place, one for each pair, of those without scaling and their base."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class LinearScaling(Scaling):
  """Positions divided by `factor` (Chen et al. 2023, position interpolation)."""

  factor: float

  def __call__(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
    return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class NtkScaling(Scaling):
  """The base grows so that the slowest pair is stretched by `factor` and the fastest not at all ("NTK-aware")."""

  factor: float

  def __call__(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
    pairs = len(frequencies)
    base = theta * self.factor ** (pairs / max(pairs - 1, 1))
    return base ** (-np.arange(pairs) / pairs)


@dataclasses.dataclass(frozen=True)
class Llama3Scaling(Scaling):
  """Slow pairs are divided by `factor`, fast ones kept, those between blended (LLaMA-3.1)."""

  factor: float = 8.0
  low_frequency_factor: float = 1.0
  high_frequency_factor: float = 4.0
  original_length: int = 8192

  def __call__(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
    turns = self.original_length * frequencies / (2 * math.pi)
    kept = (turns - self.low_frequency_factor) / (self.high_frequency_factor - self.low_frequency_factor)
    kept = np.clip(kept, 0, 1)
    return frequencies * (kept + (1 - kept) / self.factor)


@dataclasses.dataclass(frozen=True)
class YarnScaling(Scaling):
  """Slow pairs are divided by `factor`, fast ones kept, those between blended, and queries and keys grow (YaRN).

  Peng et al. 2023, section 3: a pair is fast that turns `fast` times or more in `original_length` places, and slow that
  turns `slow` times or less. Between them shares are linear in the pair's number, as in the released code, and not in
  its turns, as in the paper's equation; ends are rounded outward to whole pairs.
  """

  factor: float
  original_length: int
  fast: float = 32.0
  slow: float = 1.0
  attention_factor: float | None = None
  """What queries and keys are multiplied with; None: 0.1 ln(factor) + 1, the root of equation 22's 1 / t."""

  @property
  def magnitude(self) -> float:  # type: ignore[override]
    return max(0.1 * math.log(self.factor) + 1, 1.0) if self.attention_factor is None else self.attention_factor

  def __call__(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
    pairs = len(frequencies)
    number = lambda turns: pairs * math.log(self.original_length / (2 * math.pi * turns)) / math.log(theta)
    first, last = max(math.floor(number(self.fast)), 0), min(math.ceil(number(self.slow)), 2 * pairs - 1)
    divided = np.clip((np.arange(pairs) - first) / max(last - first, 1e-3), 0, 1)
    return frequencies * (1 - divided + divided / self.factor)


@dataclasses.dataclass(frozen=True)
class PairScaling(Scaling):
  """Each pair is slowed by a divisor of its own: any other scaling, once it is computed (GGUF files)."""

  divisors: tuple[float, ...]

  def __call__(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
    return frequencies / np.array(self.divisors)


@struct.dataclass
class Turn:
  """The angles of one batch, ready to turn any head: R pairs in each of `A` groups of a head's dimensions."""

  cos: Float[Array, 'B T A R']
  sin: Float[Array, 'B T A R']

  def __call__(self, x: Float[Array, 'B T N H']) -> Float[Array, 'B T N H']:
    """Turns pairs (x[i], x[i + R]) of each group; dimensions beyond the groups stay."""
    groups, pairs = self.cos.shape[-2:]
    turned = 2 * groups * pairs
    head = x[..., :turned].reshape(*x.shape[:-1], groups, 2, pairs)
    a, b = head[..., 0, :], head[..., 1, :]
    cos, sin = self.cos[:, :, None], self.sin[:, :, None]
    head = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-2).reshape(*x.shape[:-1], turned)
    return jnp.concatenate([head.astype(x.dtype), x[..., turned:]], axis=-1)


@dataclasses.dataclass(frozen=True)
class Rotary:
  """Rotary position embedding (RoFormer, equation 15), pairs half a rotated width apart.

  `fraction` of each head is turned, the rest passes (ChatGLM2: a half).
  """

  theta: float = 10_000.0
  fraction: float = 1.0
  scaling: Scaling | None = None

  def frequencies(self, head_dim: int) -> np.ndarray:
    """Radians a place, one for each pair."""
    pairs = int(head_dim * self.fraction) // 2
    frequencies = self.theta ** (-np.arange(pairs) / pairs)
    return frequencies if self.scaling is None else self.scaling(frequencies, self.theta)

  def __call__(self, layout: Layout, head_dim: int) -> Turn:
    return _turn(
      (layout.position,), self.frequencies(head_dim), 1.0 if self.scaling is None else self.scaling.magnitude
    )


@dataclasses.dataclass(frozen=True)
class Rotary2D:
  """Half of every head turns with the place in the text, half with the place in the blank (ChatGLM-6B)."""

  theta: float = 10_000.0

  def __call__(self, layout: Layout, head_dim: int) -> Turn:
    return _turn((layout.position, layout.block), Rotary(self.theta).frequencies(head_dim // 2))


def _turn(places: tuple[Int[Array | np.ndarray, 'B T'], ...], frequencies: np.ndarray, magnitude: float = 1.0) -> Turn:
  angles = jnp.stack(places, axis=-1)[..., None] * jnp.asarray(frequencies, jnp.float32)
  return Turn(magnitude * jnp.cos(angles), magnitude * jnp.sin(angles))


# ---- biasing the scores --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Alibi:
  """A penalty that grows with distance, steeper in some heads than in others (ALiBi, section 3)."""

  def slopes(self, num_heads: int) -> np.ndarray:
    """2^(-8/n), 2^(-16/n), ... for n a power of two; else those of the power below, then every other of twice that."""
    power = 2 ** int(math.log2(num_heads))
    slopes = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-4 * np.arange(1, 2 * power + 1, 2) / power)
    return np.concatenate([slopes, between])[:num_heads]

  def __call__(self, queries: Layout, keys: Layout, num_heads: int, head_dim: int) -> Float[Array, 'B N T S']:
    distance = jnp.abs(queries.position[:, :, None] - keys.position[:, None, :])
    return -jnp.asarray(self.slopes(num_heads), jnp.float32)[:, None, None] * distance[:, None]


@dataclasses.dataclass(frozen=True)
class FalconAlibi(Alibi):
  """ALiBi as the released Falcon-RW models have it: the scores are (q k + slope * place of the key) / sqrt(H).

  A key's place in the text is the query's less their distance, and a softmax does not see what is the query's alone: so
  this is the paper's penalty over sqrt(H), but for slopes, places and their products being rounded to bfloat16, which
  has no odd place beyond 256.
  """

  def __call__(self, queries: Layout, keys: Layout, num_heads: int, head_dim: int) -> Float[Array, 'B N T S']:
    slopes = _bfloat16(jnp.asarray(self.slopes(num_heads), jnp.float32))
    places = _bfloat16(jnp.asarray(keys.position, jnp.float32))
    bias = _bfloat16(slopes[:, None] * places[:, None]) / math.sqrt(head_dim)
    return jnp.broadcast_to(bias[:, :, None], (*bias.shape[:2], queries.position.shape[1], bias.shape[2]))


def _bfloat16(x: Float[Array, '...']) -> Float[Array, '...']:
  """Rounded, and float32 still; XLA may leave out a cast there and back."""
  return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
