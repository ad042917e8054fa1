"""Distillation: by hand, against the divergence over the whole vocabulary, in chunks, and downhill to the teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models.heads import LanguageModel
from gpt_jax.objectives.distillation import distillation_loss, divergence, teacher_top
from tests.models.small import VOCABULARY, parameters, random_tokens, shrunk

RNG = jax.random.key(0)


def random_logits(seed: int, rows: int = 6) -> jax.Array:
  return 2 * jax.random.normal(jax.random.key(seed), (rows, VOCABULARY))


def softmax(logits) -> np.ndarray:
  x = np.exp(np.asarray(logits, np.float64))
  return x / x.sum(-1, keepdims=True)


def test_by_hand():
  """p = (1/2, 1/4, 1/8, 1/8), of which two are known: (1/2, 1/4, rest 1/4); q is even: (1/4, 1/4, rest 1/2)."""
  tokens, logprobs = teacher_top(jnp.log(jnp.array([[0.5, 0.25, 0.125, 0.125]])), 2, 1.0)
  np.testing.assert_array_equal(tokens, [[0, 1]])
  np.testing.assert_allclose(jnp.exp(logprobs), [[0.5, 0.25]], rtol=1e-6)
  forward = divergence(jnp.zeros((1, 4)), tokens, logprobs, 'forward')
  np.testing.assert_allclose(forward, [0.5 * np.log(2) + 0.25 * np.log(0.5)], rtol=1e-5)
  reverse = divergence(jnp.zeros((1, 4)), tokens, logprobs, 'reverse')
  np.testing.assert_allclose(reverse, [0.25 * np.log(0.5) + 0.5 * np.log(2)], rtol=1e-5)


@pytest.mark.parametrize('direction', ['forward', 'reverse'])
def test_all_tokens_known_is_the_whole_divergence(direction):
  student, teacher = random_logits(1), random_logits(2)
  p, q = softmax(teacher / 2.0), softmax(student / 2.0)
  first, second = (p, q) if direction == 'forward' else (q, p)
  expected = (first * np.log(first / second)).sum(-1)
  whole = divergence(student / 2.0, *teacher_top(teacher, VOCABULARY, 2.0), direction)
  np.testing.assert_allclose(whole, expected, rtol=1e-4)
  before = np.zeros(6)
  for k in (1, 5, 20):
    partial = np.asarray(divergence(student / 2.0, *teacher_top(teacher, k, 2.0), direction))
    assert (before - 1e-6 <= partial).all() and (partial <= expected + 1e-5).all(), 'more outcomes, no less divergence'
    before = partial
    best = np.argsort(-p, axis=-1)[:, :k]
    lump = lambda x, best=best: np.concatenate(
      [np.take_along_axis(x, best, -1), 1 - np.take_along_axis(x, best, -1).sum(-1, keepdims=True)], -1
    )
    first, second = (lump(p), lump(q)) if direction == 'forward' else (lump(q), lump(p))
    np.testing.assert_allclose(partial, (first * np.log(first / second)).sum(-1), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('direction', ['forward', 'reverse'])
def test_a_teacher_who_is_certain_gives_finite_gradients(direction):
  teacher = jnp.zeros((1, VOCABULARY)).at[0, 3].set(200.0)
  loss = lambda logits: divergence(logits, *teacher_top(teacher, 4, 1.0), direction).sum()
  value, gradient = jax.value_and_grad(loss)(random_logits(1, 1))
  assert np.isfinite(value) and np.isfinite(gradient).all()


def batch_of(teacher: jax.Array, k: int, temperature: float) -> dict:
  tokens, logprobs = teacher_top(teacher, k, temperature)
  weights = jax.random.choice(jax.random.key(2), jnp.array([0.5, 1.0, 2.0]), (3, 12)).at[0, 7:].set(0)
  return {
    'tokens': random_tokens(rows=3), 'weights': weights, 'teacher_tokens': tokens, 'teacher_logprobs': logprobs,
  }  # fmt: skip


@pytest.mark.parametrize('direction', ['forward', 'reverse'])
@pytest.mark.parametrize('chunk', [None, 4])
def test_of_a_model_is_plain(direction, chunk):
  """Value, metrics and gradient are those of all logits and the whole vocabulary at once."""
  cfg = shrunk('llama2_7b')
  model, params = LanguageModel(cfg), parameters(cfg)
  teacher = 2 * jax.random.normal(jax.random.key(5), (3, 11, VOCABULARY))
  batch = batch_of(teacher, VOCABULARY, 2.0)
  weights = batch['weights'][:, 1:]
  mean = lambda x: jnp.sum(x * weights) / jnp.sum(weights)

  def plain(params):
    logits = model.apply(params, batch['tokens'][:, :-1])[0]
    log_q, log_p = jax.nn.log_softmax(logits / 2.0), jax.nn.log_softmax(teacher / 2.0)
    first, second = (log_p, log_q) if direction == 'forward' else (log_q, log_p)
    kl = mean(jnp.sum(jnp.exp(first) * (first - second), -1))
    nll = mean(-jnp.take_along_axis(jax.nn.log_softmax(logits), batch['tokens'][:, 1:, None], -1)[..., 0])
    overlap = mean(jnp.minimum(jnp.exp(log_q), jnp.exp(log_p)).sum(-1))
    agreement = mean(logits.argmax(-1) == teacher.argmax(-1))
    return 0.75 * 4 * kl + 0.25 * nll, {'kl': kl, 'nll': nll, 'overlap': overlap, 'agreement': agreement}

  def ours(params):
    how = {'direction': direction, 'temperature': 2.0, 'mix': 0.25, 'chunk': chunk}
    loss, metrics = distillation_loss(model, **how)(params, batch, RNG)
    return loss.value, {name: found.value for name, found in metrics.items()}

  found, gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
  expected, expected_gradient = jax.jit(jax.value_and_grad(plain, has_aux=True))(params)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), found, expected)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), gradient, expected_gradient)


@pytest.mark.parametrize('direction', ['forward', 'reverse'])
def test_downhill_lies_the_teacher(direction):
  """Of five known tokens: the gradient is zero where the student is the teacher."""
  teacher = random_logits(3)
  gradient = jax.grad(lambda logits: divergence(logits, *teacher_top(teacher, 5, 1.0), direction).sum())(teacher)
  np.testing.assert_allclose(gradient, 0, atol=1e-6)
