"""Which candidates are kept: the model has read them all at once, and knows what it would have written itself."""

import dataclasses

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
import numpy as np

from gpt_jax.decoding.sampling import Sampling, likeliest
from gpt_jax.decoding.tree import Tree
from gpt_jax.types import UserError


@struct.dataclass
class Accepted:
  """How far down the tree of candidates a text goes on."""

  node: Int[Array, 'B']
  """The last one kept, the path to it among them; 0, the root, if none is."""
  token: Int[Array, 'B']
  """What follows it."""


@dataclasses.dataclass(frozen=True)
class Rejection:
  """Keeps candidates so that the text is distributed as if the model had written it alone, token by token.

  Greedy, a candidate is kept where it is the model's own choice, in any tree. Drawn from q in a chain, it is kept with
  probability min(1, p / q); the token after the last one kept is drawn from norm(max(0, p - q)), or from p itself when
  all are kept (Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2). Both p and q are what `sampling`
  makes of logits.
  """

  def check(self, sampling: Sampling, tree: Tree) -> None:
    """Raises UserError where it would not be exact."""
    if not sampling.greedy and not tree.is_chain:
      raise UserError('a tree of candidates is exact for temperature = 0 alone; use it, a chain, or typical acceptance')

  def first(self, sampling: Sampling, keys: Key[Array, 'B'], logits: Float[Array, 'B V']) -> Int[Array, 'B']:
    """The token after a prompt."""
    return sampling.draw(keys, logits).astype(jnp.int32)

  def __call__(
    self,
    sampling: Sampling,
    tree: Tree,
    logits: Float[Array, 'B N V'],
    nodes: Int[Array, 'B N'],
    log_q: Float[Array, 'B M V'] | None,
    keys: Key[Array, 'B'],
    draft_keys: Key[Array, 'B'],
  ) -> Accepted:
    """Which of the `nodes`, after each of which the model gives `logits`, are kept.

    `log_q` is what the nodes but the root were drawn from; None: they were not drawn, and each has probability 1.
    """
    if sampling.greedy:
      best = likeliest(logits)
      node = _deepest(tree, nodes[:, 1:] == best[:, np.array(tree.parents[1:], int)])
      return Accepted(node, _at(best, node))
    rows, length, _ = logits.shape
    p = _each(sampling.log_probabilities, logits)
    if length == 1:
      return Accepted(jnp.zeros(rows, jnp.int32), _draw(keys, p[:, 0]))
    drawn = nodes[:, 1:, None]
    if log_q is None:
      log_q = jnp.where(jax.nn.one_hot(drawn[..., 0], logits.shape[-1], dtype=bool), 0.0, -jnp.inf)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (length - 1,)))(draft_keys)
    ratio = jnp.take_along_axis(p[:, :-1], drawn, -1) - jnp.take_along_axis(log_q, drawn, -1)
    node = _deepest(tree, jnp.log(uniform) < ratio[..., 0])
    q = jnp.concatenate([jnp.exp(log_q), jnp.zeros_like(p[:, :1])], axis=1)
    p_here, q_here = jnp.exp(_at(p, node)), _at(q, node)
    rest = jnp.maximum(p_here - q_here, 0)
    # p = q but for rounding: then the candidate was kept but for rounding, too.
    rest = jnp.where(jnp.sum(rest, axis=-1, keepdims=True) > 0, rest, p_here)
    return Accepted(node, _draw(keys, jnp.log(rest)))


@dataclasses.dataclass(frozen=True)
class Typical:
  """Keeps candidates that the model finds typical, not only those that it would have drawn (Medusa, section 3.3).

  A candidate is kept if p > min(epsilon, delta exp(-H(p))), p being what `sampling` makes of logits and H its entropy;
  the longest path is taken, of equals the likeliest; the token after it is the likeliest. So the text is not
  distributed as the model's: nothing in it is drawn by chance.
  """

  epsilon: float | int = 0.09
  delta: float | int = 0.3
  """The paper's is the root of epsilon."""

  def check(self, sampling: Sampling, tree: Tree) -> None:
    """Raises UserError for numbers that are none."""
    del tree
    if sampling.greedy:
      raise UserError('typical acceptance needs temperature > 0, of which its thresholds are made')
    if not (0 < self.epsilon <= 1 and self.delta > 0):
      raise UserError(f'typical acceptance takes epsilon in (0, 1] and delta > 0, not {self.epsilon} and {self.delta}')

  def first(self, sampling: Sampling, keys: Key[Array, 'B'], logits: Float[Array, 'B V']) -> Int[Array, 'B']:
    """The token after a prompt: the likeliest."""
    del sampling, keys
    return likeliest(logits)

  def __call__(
    self,
    sampling: Sampling,
    tree: Tree,
    logits: Float[Array, 'B N V'],
    nodes: Int[Array, 'B N'],
    log_q: Float[Array, 'B M V'] | None,
    keys: Key[Array, 'B'],
    draft_keys: Key[Array, 'B'],
  ) -> Accepted:
    """As `Rejection`; what the nodes were drawn from does not matter."""
    del log_q, keys, draft_keys
    parents = np.array(tree.parents[1:], int)
    p = _each(sampling.log_probabilities, logits)
    entropy = -jnp.sum(jnp.where(jnp.isfinite(p), p * jnp.exp(p), 0), axis=-1)
    threshold = jnp.minimum(jnp.log(self.epsilon), jnp.log(self.delta) - entropy)
    of_nodes = jnp.take_along_axis(p[:, parents], nodes[:, 1:, None], axis=-1)[..., 0]
    node = _deepest(tree, of_nodes > threshold[:, parents], of_nodes)
    return Accepted(node, likeliest(_at(logits, node)))


def _deepest(tree: Tree, fits, scores=None) -> Int[Array, 'B']:
  """The deepest node whose whole path `fits`; of equals the one of the highest sum of `scores`, or the first."""
  whole, sums = [jnp.ones(len(fits), bool)], [jnp.zeros(len(fits))]
  for node, parent in enumerate(tree.parents[1:]):
    whole.append(whole[parent] & fits[:, node])
    sums.append(sums[parent] + (0 if scores is None else scores[:, node]))
  kept, total = jnp.stack(whole, axis=1), jnp.stack(sums, axis=1)
  depth = jnp.where(kept, jnp.asarray(tree.depths), -1)
  longest = depth == jnp.max(depth, axis=1, keepdims=True)
  return jnp.argmax(jnp.where(longest, total, -jnp.inf), axis=1).astype(jnp.int32)


def _at(x: jax.Array, node: Int[Array, 'B']) -> jax.Array:
  """Each row's entry of its node: [B, N, ...] to [B, ...]."""
  return jnp.take_along_axis(x, node.reshape(-1, *(1,) * (x.ndim - 1)), axis=1)[:, 0]


def _each(function, logits: Float[Array, 'B N V']) -> Float[Array, 'B N V']:
  return function(logits.reshape(-1, logits.shape[-1])).reshape(logits.shape)


def _draw(keys: Key[Array, 'B'], log_probabilities: Float[Array, 'B V']) -> Int[Array, 'B']:
  return jax.vmap(jax.random.categorical)(keys, log_probabilities).astype(jnp.int32)
