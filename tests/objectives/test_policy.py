"""The policy's losses are their formulas, a token after the other."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.objectives.likelihood import next_token_loss
from gpt_jax.objectives.policy import policy_loss, response_logprobs, with_pretraining

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 7, 5, 11
KEY = jax.random.key(0)


class Bigrams:
  """A language model whose hidden state is its token's embedding, with values from one more column."""

  def apply(self, params: Any, tokens: Any, layout: Any = None, *, method: str, rngs: Any = None) -> Any:
    del layout, rngs
    hidden = params['embedding'][tokens]
    unembed = jax.tree_util.Partial(lambda table, hidden: hidden @ table, params['unembed'])
    return hidden, unembed, hidden @ params['value'] if method == 'features_and_values' else None


def drawn(seed: int) -> tuple[dict, dict]:
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = {'embedding': normal(VOCABULARY, WIDTH), 'unembed': normal(WIDTH, VOCABULARY), 'value': normal(WIDTH)}
  weights = np.zeros((ROWS, LENGTH), np.float32)
  for row, (start, end) in enumerate([(2, 7), (3, 5), (1, 4)]):
    weights[row, start:end] = 1
  batch = {
    'tokens': rng.integers(0, VOCABULARY, (ROWS, LENGTH)),
    'weights': weights,
    'scores': np.arange(3.0, dtype=np.float32),
  }
  batch = jax.tree.map(jnp.asarray, batch)
  near = response_logprobs(Bigrams(), params, batch)
  shape = (ROWS, LENGTH - 1)
  batch |= {
    name: np.asarray(near + 0.3 * rng.normal(size=shape), np.float32) for name in ('old_logprobs', 'reference_logprobs')
  }
  batch['advantages'] = np.asarray(rng.normal(size=shape), np.float32)
  return params, jax.tree.map(jnp.asarray, batch)


def with_values(batch: dict, seed: int = 5) -> dict:
  rng = np.random.default_rng(seed)
  shape = (ROWS, LENGTH - 1)
  return {**batch, **{name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name in ('values', 'returns')}}


def by_loop(
  params: dict, batch: dict, *, temperature=1.0, by_response=False, clip=0.2, v_clip=0.2, v=0.1, e=0.0, kl=0.0
):
  """The loss and what is told of it, from the equations."""
  batch = jax.device_get(batch)
  total = weight = 0.0
  told: dict[str, list] = {name: [] for name in ('ratio', 'entropy', 'approximate_kl', 'clip_fraction', 'policy_loss')}
  for row in range(ROWS):
    places = np.flatnonzero(batch['weights'][row, 1:])
    share = 1 / len(places) if by_response else 1.0
    for t in places:
      hidden = np.asarray(params['embedding'], float)[batch['tokens'][row, t]]
      logits = hidden @ np.asarray(params['unembed'], float) / temperature
      p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
      logprob = np.log(p[batch['tokens'][row, t + 1]])
      difference = logprob - batch['old_logprobs'][row, t]
      ratio, advantage = np.exp(difference), batch['advantages'][row, t]
      gain = -min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage)
      entropy = -(p * np.log(p)).sum()
      d = batch['reference_logprobs'][row, t] - logprob
      loss = gain - e * entropy + kl * (np.exp(d) - d - 1)
      if 'returns' in batch:
        value, old, back = (
          hidden @ np.asarray(params['value'], float),
          batch['values'][row, t],
          batch['returns'][row, t],
        )
        near = min(max(value, old - v_clip), old + v_clip)
        loss += v * max((value - back) ** 2, (near - back) ** 2) / 2
      total, weight = total + share * loss, weight + share
      told['ratio'].append(ratio)
      told['entropy'].append(entropy)
      told['approximate_kl'].append(difference**2 / 2)
      told['clip_fraction'].append(abs(ratio - 1) > clip)
      told['policy_loss'].append(gain)
  return total / weight, {name: np.mean(values) for name, values in told.items()}


@pytest.mark.parametrize('chunk', [None, 4])
@pytest.mark.parametrize(
  ('ours', 'theirs'),
  [
    ({}, {}),
    ({'clip_range': 0.05, 'temperature': 0.7}, {'clip': 0.05, 'temperature': 0.7}),
    ({'entropy_coefficient': 0.3, 'kl_coefficient': 0.2}, {'e': 0.3, 'kl': 0.2}),
    ({'value_clip_range': 0.01, 'value_coefficient': 2.0}, {'v_clip': 0.01, 'v': 2.0}),
  ],
)
def test_losses_are_those_of_a_loop(ours, theirs, chunk):
  for batch_of in (with_values, lambda batch: batch):
    params, batch = drawn(1)
    batch = batch_of(batch)
    loss, metrics = policy_loss(Bigrams(), chunk=chunk, **ours)(params, batch, KEY)
    expected, told = by_loop(params, batch, **theirs)
    assert float(loss.value) == pytest.approx(expected, rel=1e-4)
    for name, value in told.items():
      assert float(metrics[name].value) == pytest.approx(value, rel=1e-4), name
    assert ('value_loss' in metrics) == ('returns' in batch)


def test_a_mean_of_the_means_of_responses():
  params, batch = drawn(2)
  how = {'kl': 0.1, 'by_response': True}
  loss, _ = policy_loss(Bigrams(), by_response=True, kl_coefficient=0.1)(params, batch, KEY)
  assert float(loss.value) == pytest.approx(by_loop(params, batch, **how)[0], rel=1e-4)
  assert float(loss.value) != pytest.approx(by_loop(params, batch, kl=0.1)[0], rel=1e-3)


def test_what_is_told_of_responses_by_hand():
  params, batch = drawn(3)
  weights = batch['weights'][:, 1:]
  _, metrics = policy_loss(Bigrams())(params, batch, KEY)
  assert float(metrics['reward'].value) == 1.0 and float(metrics['length'].value) == pytest.approx((5 + 2 + 3) / 3)
  kl = ((batch['old_logprobs'] - batch['reference_logprobs']) * weights).sum() / ROWS
  assert float(metrics['kl'].value) == pytest.approx(float(kl), rel=1e-4)


def test_the_gradient_is_of_what_is_not_clipped():
  """Where the ratio has left the range on the side that the advantage pushes to, nothing is learned."""
  params, batch = drawn(4)
  near = response_logprobs(Bigrams(), params, batch)
  pushed = {**batch, 'old_logprobs': near - jnp.where(batch['advantages'] > 0, 0.5, -0.5)}
  loss = lambda params, batch: policy_loss(Bigrams())(params, batch, KEY)[0].value
  norm = lambda batch: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(jax.grad(loss)(params, batch)))
  assert norm(pushed) == 0 < norm({**batch, 'old_logprobs': near})


def test_a_perfect_critic_explains_all_and_a_mean_nothing():
  params, batch = drawn(6)
  found = Bigrams().apply(params, batch['tokens'][:, :-1], method='features_and_values')[2]
  weights = batch['weights'][:, 1:]
  same = {**batch, 'values': found, 'returns': found}
  explained = lambda batch, params: float(policy_loss(Bigrams())(params, batch, KEY)[1]['explained_variance'].value)
  assert explained(same, params) == pytest.approx(1.0)
  mean = float((same['returns'] * weights).sum() / weights.sum())
  flat = {**params, 'value': jnp.zeros(WIDTH)}
  assert explained({**same, 'returns': same['returns'] - mean}, flat) == pytest.approx(0.0, abs=1e-5)


def test_pretraining_counts_its_coefficient():
  params, batch = drawn(7)
  text = {'tokens': jnp.arange(8).reshape(2, 4), 'weights': jnp.ones((2, 4))}
  policy, nll = policy_loss(Bigrams()), next_token_loss(Bigrams())
  loss, metrics = with_pretraining(policy, nll, 27.8)(params, {**batch, 'pretraining': text}, KEY)
  alone, of_text = policy(params, batch, KEY)[0].value, nll(params, text, KEY)[0].value
  assert float(loss.value) == pytest.approx(float(alone + 27.8 * of_text), rel=1e-5)
  assert float(metrics['pretraining_nll'].value) == pytest.approx(float(of_text))


def test_logprobs_in_chunks():
  params, batch = drawn(8)
  whole = response_logprobs(Bigrams(), params, batch, temperature=0.7)
  np.testing.assert_allclose(response_logprobs(Bigrams(), params, batch, temperature=0.7, chunk=4), whole, rtol=1e-6)
