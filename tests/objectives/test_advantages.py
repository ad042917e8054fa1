"""What tokens were worth, by hand and by loops over the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.objectives import advantages

WEIGHTS = jnp.array([[0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 1, 0, 0, 0]], jnp.float32)


def drawn(seed: int) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).normal(size=WEIGHTS.shape), jnp.float32)


def test_rewards_of_tokens_by_hand():
  logprobs = jnp.array([[9.0, -1.0, -2.0, -3.0]], jnp.float32)
  reference = jnp.array([[0.0, -1.5, -1.0, -3.0]], jnp.float32)
  weights = jnp.array([[0, 1, 1, 0]], jnp.float32)
  found = advantages.token_rewards(jnp.array([10.0]), logprobs, reference, weights, 0.1)
  np.testing.assert_allclose(found, [[0, -0.05, 10 + 0.1, 0]], atol=1e-6)
  np.testing.assert_array_equal(advantages.last_token(WEIGHTS), [[0, 0, 0, 1, 0], [0, 0, 0, 0, 1], [0, 1, 0, 0, 0]])


def test_gae_by_hand():
  """One response of two tokens: deltas 1 + 0.5 * 4 - 2 = 1 and 3 - 4 = -1, with discount 0.5 and decay 0.8."""
  weights = jnp.array([[0, 1, 1, 0]], jnp.float32)
  rewards = jnp.array([[7, 1, 3, 7]], jnp.float32)
  values = jnp.array([[9, 2, 4, 9]], jnp.float32)
  found = advantages.gae(rewards, values, weights, discount=0.5, decay=0.8)
  np.testing.assert_allclose(found.advantages, [[0, 1 + 0.4 * -1, -1, 0]], atol=1e-6)
  np.testing.assert_allclose(found.returns, [[0, 2.6, 3, 0]], atol=1e-6)


@pytest.mark.parametrize(('discount', 'decay'), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_gae_is_the_sum_of_later_deltas(discount, decay):
  rewards, values = drawn(0), drawn(1)
  found = advantages.gae(rewards, values, WEIGHTS, discount=discount, decay=decay)
  for row, weights in enumerate(WEIGHTS):
    places = np.flatnonzero(weights)
    r, v = rewards[row, places], np.append(values[row, places], 0)
    deltas = r + discount * v[1:] - v[:-1]
    expected = [sum((discount * decay) ** (k - t) * deltas[k] for k in range(t, len(r))) for t in range(len(r))]
    np.testing.assert_allclose(found.advantages[row, places], expected, atol=1e-5)
    np.testing.assert_allclose(found.returns[row, places], expected + v[:-1], atol=1e-5)
  assert not np.any(np.asarray(found.advantages)[WEIGHTS == 0]) and not np.any(np.asarray(found.returns)[WEIGHTS == 0])


def test_whitening_counts_only_what_weighs_and_divides_by_n():
  x = drawn(2)
  inner = x[WEIGHTS > 0]
  deviation = np.sqrt(np.mean((inner - inner.mean()) ** 2))
  np.testing.assert_allclose(advantages.whiten(x, WEIGHTS)[WEIGHTS > 0], (inner - inner.mean()) / deviation, rtol=1e-4)
  kept = advantages.whiten(x, WEIGHTS, shift_mean=False)
  np.testing.assert_allclose(kept[WEIGHTS > 0], (inner - inner.mean()) / deviation + inner.mean(), rtol=1e-4)
  assert not np.any(np.asarray(kept)[WEIGHTS == 0])


def test_groups_by_hand():
  scores = jnp.array([1.0, 2.0, 3.0, 5.0, 5.0, 5.0], jnp.float32)
  np.testing.assert_allclose(advantages.group_relative(scores, 3), [-1, 0, 1, 0, 0, 0], atol=1e-3)
  np.testing.assert_allclose(advantages.group_relative(2 * scores, 3, scaled=False), [-2, 0, 2, 0, 0, 0], atol=1e-6)
  np.testing.assert_allclose(advantages.leave_one_out(scores, 3), [-1.5, 0, 1.5, 0, 0, 0], atol=1e-6)
  np.testing.assert_allclose(advantages.leave_one_out(scores, 2), [-1, 1, -2, 2, 0, 0], atol=1e-6)


def test_the_kl_coefficient_is_adapted_by_hand():
  """lm-human-preferences: 1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon."""
  how = {'target': 6.0, 'horizon': 10_000, 'episodes': 512}
  assert advantages.adapted(0.15, 6.6, **how) == pytest.approx(0.15 * (1 + 0.1 * 0.0512))
  assert advantages.adapted(0.15, 60.0, **how) == pytest.approx(0.15 * (1 + 0.2 * 0.0512))
  assert advantages.adapted(0.15, 0.0, **how) == pytest.approx(0.15 * (1 - 0.2 * 0.0512))
  assert advantages.adapted(0.15, 6.0, **how) == 0.15
