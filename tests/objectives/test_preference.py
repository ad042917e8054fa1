"""Losses over rankings are those of a loop over pairs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.objectives.preference import dpo_loss, log_likelihoods, ranking_loss, ranking_metrics
from gpt_jax.types import Layout

WIDTH, KEY = 7, jax.random.key(0)


class Linear:
  """The reward of a text is a product of its counts of tokens with the parameters; counts what it reads."""

  read = 0

  def apply(self, params, tokens, layout, rngs=None):
    del rngs
    self.read += len(tokens)
    return jnp.sum(params['params'][tokens] * (layout.segment > 0), axis=1)


def batch_of(scores: list[list[float]], width: int, seed: int = 0) -> dict:
  """Rankings of so many responses each, filled up to `width`."""
  rng = np.random.default_rng(seed)
  rows = len(scores)
  tokens = rng.integers(0, WIDTH, (rows, width, 5))
  weights = np.array([[1.0] * len(row) + [0.0] * (width - len(row)) for row in scores], np.float32)
  padded = np.array([[*row, *rng.normal(size=width - len(row))] for row in scores], np.float32)
  zeros = np.zeros_like(tokens)
  layout = Layout(
    zeros, zeros, zeros, np.broadcast_to(weights[..., None], tokens.shape).astype(int), zeros.astype(bool)
  )
  return {'tokens': tokens, 'weights': weights, 'scores': padded, 'layout': layout}


SCORES = [[3.0, 1.0, 1.0, 2.0], [0.5, -0.5], [1.0, 1.0, 1.0], [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]]
PARAMS = {'params': jnp.asarray(np.random.default_rng(1).normal(size=WIDTH), jnp.float32)}


def by_pairs(params, batch, margin):
  """The formula, a pair after the other, each read by itself."""
  total, rankings, right, pairs = 0.0, 0, 0, 0
  for tokens, scores, weights in zip(batch['tokens'], batch['scores'], batch['weights'], strict=True):
    count = int(weights.sum())
    rankings += count > 1
    for i in range(count):
      for j in range(count):
        if scores[i] > scores[j]:
          better, worse = (params['params'][tokens[k]].sum() for k in (i, j))
          apart = better - worse - margin * (scores[i] - scores[j])
          total += jnp.log1p(jnp.exp(-apart)) / math.comb(count, 2)
          right, pairs = right + (better > worse), pairs + 1
  return total / rankings, right / pairs


@pytest.mark.parametrize('margin', [0.0, 0.4])
def test_loss_and_gradient_are_those_of_a_loop_over_pairs(margin):
  batch = batch_of(SCORES, 6)
  loss_fn = jax.jit(ranking_loss(Linear(), margin=margin))
  value = lambda params: loss_fn(params, batch, KEY)[0].value
  loss, gradient = jax.value_and_grad(value)(PARAMS)
  wanted, wanted_gradient = jax.value_and_grad(lambda params: by_pairs(params, batch, margin)[0])(PARAMS)
  np.testing.assert_allclose(loss, wanted, rtol=1e-6)
  np.testing.assert_allclose(gradient['params'], wanted_gradient['params'], atol=1e-6)
  found, metrics = loss_fn(PARAMS, batch, KEY)
  np.testing.assert_allclose(metrics['accuracy'].value, by_pairs(PARAMS, batch, 0)[1], rtol=1e-6)
  assert metrics['accuracy'].weight == 5 + 1 + 0 + 15 and found.weight == 4


def test_each_response_is_read_once():
  model = Linear()
  jax.jit(ranking_loss(model))(PARAMS, batch_of([[9.0 - i for i in range(9)]], 9), KEY)
  assert model.read == 9, 'not once for each of its eight pairs'


def test_what_fills_a_ranking_up_changes_nothing():
  narrow, wide = batch_of(SCORES[:1], 4), batch_of(SCORES[:1], 6)
  wide['tokens'][:, :4] = narrow['tokens']
  for name in ('loss', 'accuracy'):
    values = []
    for batch in (narrow, wide):
      loss, metrics = jax.jit(ranking_loss(Linear()))(PARAMS, batch, KEY)
      values.append({**metrics, 'loss': loss}[name].value)
    np.testing.assert_allclose(*values, rtol=1e-6)
  empty = batch_of([[]], 4)
  assert jax.jit(ranking_loss(Linear()))(PARAMS, empty, KEY)[0].weight == 0


def test_a_pair_by_hand():
  """Rewards 2 and 1: -log sigmoid(1) = 0.31326, and with a margin of 1 for their two points 1.31326."""
  layout = batch_of([[2.0, 0.0]], 2)['layout']
  batch = {
    'tokens': np.array([[[0] * 5, [1] * 5]]),
    'weights': np.ones((1, 2)),
    'scores': np.array([[2.0, 0.0]]),
    'layout': layout,
  }
  params = {'params': jnp.array([0.4, 0.2])}
  for margin, expected in ((0.0, 0.313262), (1.0, 1.313262)):
    loss, _ = jax.jit(ranking_loss(Linear(), margin=margin))(params, batch, KEY)
    np.testing.assert_allclose(loss.value, expected, atol=1e-5)


def test_what_is_measured_of_a_trained_model():
  batch = batch_of(SCORES, 6)
  model = Linear()
  _, metrics = jax.jit(ranking_metrics(model, bins=4))(PARAMS, batch, KEY)
  assert model.read == 4 * 6, 'once each'
  rewards = np.asarray(PARAMS['params'])[batch['tokens']].sum(-1)
  best, predicted, observed = [], [], []
  for row, scores in enumerate(SCORES):
    best += [rewards[row, i] for i, score in enumerate(scores) if score == max(scores)]
    for i, score in enumerate(scores):
      for j, other in enumerate(scores):
        if score != other:
          predicted.append(1 / (1 + math.exp(rewards[row, j] - rewards[row, i])))
          observed.append(score > other)
  np.testing.assert_allclose(metrics['best_reward'].value, np.mean(best), rtol=1e-5)
  bins = np.minimum((np.array(predicted) * 4).astype(int), 3)
  assert len(set(bins)) > 1
  for k in range(4):
    within = bins == k
    np.testing.assert_allclose(metrics[f'share_{k}'].value, within.mean(), rtol=1e-5)
    if within.any():
      np.testing.assert_allclose(metrics[f'predicted_{k}'].value, np.array(predicted)[within].mean(), rtol=1e-5)
      np.testing.assert_allclose(metrics[f'observed_{k}'].value, np.array(observed)[within].mean(), rtol=1e-5)


class Bigrams:
  """A language model of the token before alone."""

  def apply(self, params, tokens, layout=None, *, method, rngs=None):
    del layout, rngs
    assert method == 'features'
    return params['logits'][tokens], jax.tree_util.Partial(lambda hidden: hidden), None


def policy_and_batch(seed: int = 3) -> tuple[dict, dict]:
  """Responses of different lengths after two tokens of prompt, and what a reference says of them."""
  rng = np.random.default_rng(seed)
  batch = batch_of(SCORES, 6)
  lengths = rng.integers(3, 6, batch['tokens'].shape[:2])
  places = np.arange(5)
  batch['said'] = ((places >= 2) & (places < lengths[..., None])).astype(np.float32)
  batch['reference_logprobs'] = rng.normal(size=lengths.shape).astype(np.float32) - 4
  return {'logits': jnp.asarray(rng.normal(size=(WIDTH, WIDTH)), jnp.float32)}, batch


@pytest.mark.parametrize(
  ('how', 'each'),
  [
    ({'beta': 0.3}, lambda d: jnp.log1p(jnp.exp(-0.3 * d))),
    (
      {'beta': 0.3, 'label_smoothing': 0.2},
      lambda d: 0.8 * jnp.log1p(jnp.exp(-0.3 * d)) + 0.2 * jnp.log1p(jnp.exp(0.3 * d)),
    ),
    ({'beta': 0.5, 'form': 'ipo'}, lambda d: (d - 1.0) ** 2),
    ({'beta': 0.5, 'form': 'ipo', 'by_token': True}, lambda d: (d - 1.0) ** 2),
  ],
)
@pytest.mark.parametrize('chunk', [None, 3])
def test_dpo_and_its_gradient_are_those_of_a_loop_over_pairs(how, each, chunk):
  params, batch = policy_and_batch()

  def by_pairs(params):
    total = 0.0
    for row, scores in enumerate(SCORES):
      gains = []
      for k in range(len(scores)):
        tokens, gain = batch['tokens'][row, k], -batch['reference_logprobs'][row, k]
        for t in np.flatnonzero(batch['said'][row, k]):
          gain += jax.nn.log_softmax(params['logits'][tokens[t - 1]])[tokens[t]]
        gains.append(gain / batch['said'][row, k].sum() if how.get('by_token') else gain)
      pairs = [(i, j) for i, a in enumerate(scores) for j, b in enumerate(scores) if a > b]
      total += sum(each(gains[i] - gains[j]) for i, j in pairs) / math.comb(len(scores), 2)
    return total / len(SCORES)

  loss_fn = jax.jit(dpo_loss(Bigrams(), chunk=chunk, **how))
  loss, gradient = jax.value_and_grad(lambda params: loss_fn(params, batch, KEY)[0].value)(params)
  wanted, wanted_gradient = jax.value_and_grad(by_pairs)(params)
  np.testing.assert_allclose(loss, wanted, rtol=1e-5)
  np.testing.assert_allclose(gradient['logits'], wanted_gradient['logits'], atol=1e-5)


def test_a_policy_that_is_its_reference_has_no_preference():
  params, batch = policy_and_batch()
  said = log_likelihoods(Bigrams(), params, jax.tree.map(jnp.asarray, batch))
  loss, metrics = dpo_loss(Bigrams())(params, {**jax.tree.map(jnp.asarray, batch), 'reference_logprobs': said}, KEY)
  pairs = [5 / 6, 1, 0, 1]  # of each ranking, over C(K, 2)
  np.testing.assert_allclose(loss.value, math.log(2) * sum(pairs) / 4, rtol=1e-5)
  assert metrics['margin'].value == metrics['chosen_gain'].value == metrics['rejected_gain'].value == 0
