import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.decoding.sampling import Sampling, likeliest, top_k, top_p
from gpt_jax.types import UserError

EIGHTHS = np.array([[1, 4, 2, 1], [4, 1, 1, 2]]) / 8


def kept(warped: jax.Array) -> list[list[int]]:
  return [np.flatnonzero(np.isfinite(row)).tolist() for row in np.asarray(warped)]


@pytest.mark.parametrize(('p', 'expected'), [
  (0.01, [[1], [0]]),  # always at least one
  (0.45, [[1], [0]]),
  (0.55, [[1, 2], [0, 3]]),
  (0.8, [[0, 1, 2], [0, 1, 3]]),  # of two equals the fewest that do: one
  (0.9, [[0, 1, 2, 3], [0, 1, 2, 3]]),
])  # fmt: skip
def test_nucleus_by_hand(p, expected):
  assert kept(top_p(jnp.log(EIGHTHS), p)) == expected


def test_top_k_by_hand():
  assert kept(top_k(jnp.log(EIGHTHS), 2)) == [[1, 2], [0, 3]]
  assert kept(top_k(jnp.log(EIGHTHS), 99)) == [[0, 1, 2, 3]] * 2


def test_the_likeliest_is_numpys_argmax():
  logits = np.random.default_rng(0).integers(-3, 3, (4, 5, 37)).astype(np.float32)  # many are equal
  logits[0, 0], logits[1, 1, 1:], logits[2] = -np.inf, -np.inf, -1e30
  np.testing.assert_array_equal(jax.jit(likeliest)(logits), logits.argmax(-1))
  assert jax.jit(likeliest)(np.full((1, 37), np.nan, np.float32))[0] < 37, 'a token, whatever comes'


def brute_force(logits: np.ndarray, temperature: float, k: int | None, p: float | None) -> np.ndarray:
  """The warped distribution of one row, by going through its tokens from the likeliest on."""
  weights = np.exp(logits.astype(np.float64) / temperature)
  ranked = np.argsort(-weights)[:k]
  mass = weights / weights[ranked].sum()
  chosen, total = [], 0.0
  for token in ranked:
    if p is not None and total >= p:
      break
    chosen.append(token)
    total += mass[token]
  result = np.zeros(len(logits))
  result[chosen] = weights[chosen] / weights[chosen].sum()
  return result


@pytest.mark.parametrize('numbers', [
  (1.0, None, None), (0.7, None, None), (1.0, 5, None), (1.0, None, 0.6), (1.6, 9, 0.8), (0.5, 3, 0.99), (1.0, 4, 1.0),
])  # fmt: skip
def test_draws_follow_the_warped_distribution(numbers):
  sampling = Sampling(*numbers)
  logits = 1.5 * jax.random.normal(jax.random.key(3), (1, 20))
  expected = brute_force(np.asarray(logits[0]), *numbers)
  np.testing.assert_allclose(np.exp(sampling.log_probabilities(logits)[0]), expected, atol=1e-6)
  draws = 20_000
  tokens = jax.jit(sampling.draw)(jax.random.split(jax.random.key(4), draws), jnp.repeat(logits, draws, axis=0))
  counts = np.bincount(tokens, minlength=20)
  assert not counts[expected == 0].any()
  chi_square = np.sum((counts - draws * expected)[expected > 0] ** 2 / (draws * expected[expected > 0]))
  freedom = np.sum(expected > 0) - 1
  assert chi_square < freedom + 4 * np.sqrt(2 * freedom) + 4


def test_temperature_zero_takes_the_likeliest():
  logits = jax.random.normal(jax.random.key(0), (3, 9))
  greedy = Sampling(temperature=0, top_k=3, top_p=0.5)
  best = np.argmax(logits, axis=-1)
  np.testing.assert_array_equal(greedy.draw(jax.random.split(jax.random.key(1), 3), logits), best)
  np.testing.assert_array_equal(np.exp(greedy.log_probabilities(logits)), np.eye(9)[best])


@pytest.mark.parametrize(('field', 'value'), [
  ('temperature', -1.0), ('temperature', float('nan')), ('temperature', float('inf')),
  ('top_k', 0), ('top_p', 0.0), ('top_p', 1.1),
])  # fmt: skip
def test_numbers_out_of_range_are_named(field, value):
  with pytest.raises(UserError, match=f'^{field} = .* must be'):
    Sampling(**{field: value})
