"""Advantages are those of rlax, which knows one sequence at a time and no padding."""

import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.objectives import advantages

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(('discount', 'decay'), [(1.0, 0.95), (0.9, 0.5), (0.99, 1.0)])
def test_gae(discount, decay):
  import rlax

  rng = np.random.default_rng(0)
  rewards, values = jnp.asarray(rng.normal(size=(2, 5, 9)), jnp.float32)
  weights = np.zeros((5, 9), np.float32)
  for row, (start, end) in enumerate([(0, 9), (2, 7), (8, 9), (1, 4), (3, 9)]):
    weights[row, start:end] = 1
  found = advantages.gae(rewards, values, jnp.asarray(weights), discount=discount, decay=decay)
  for row in range(5):
    places = np.flatnonzero(weights[row])
    r, v = rewards[row, places], jnp.append(values[row, places], 0.0)
    wanted = rlax.truncated_generalized_advantage_estimation(r, jnp.full(len(places), discount), decay, v)
    np.testing.assert_allclose(found.advantages[row, places], wanted, atol=1e-5)


def test_the_clipped_surrogate():
  """rlax means over time; ours is a mean over the tokens of responses."""
  import rlax

  from gpt_jax.objectives.policy import policy_loss, response_logprobs
  from tests.objectives.test_policy import KEY, Bigrams, drawn

  params, batch = drawn(9)
  loss, _ = policy_loss(Bigrams(), clip_range=0.1)(params, batch, KEY)
  ratios = jnp.exp(response_logprobs(Bigrams(), params, batch) - batch['old_logprobs'])
  chosen = np.asarray(batch['weights'][:, 1:]) > 0
  wanted = rlax.clipped_surrogate_pg_loss(ratios[chosen], batch['advantages'][chosen], 0.1)
  np.testing.assert_allclose(loss.value, wanted, rtol=1e-5)
