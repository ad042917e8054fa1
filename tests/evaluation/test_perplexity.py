import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.evaluation.perplexity import evaluate, once
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.layers import Mlp
from gpt_jax.models.positions import Learned
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.objectives.likelihood import next_token_loss
from gpt_jax.types import Layout, Mean, UserError

VOCABULARY = 31
CONFIG = TransformerConfig(
  vocab_size=VOCABULARY,
  num_layers=2,
  model_dim=32,
  num_heads=4,
  num_kv_heads=4,
  mlp=Mlp(hidden=48),
  positions=Learned(9),
)
MODEL = LanguageModel(CONFIG)


@pytest.fixture(scope='module')
def params():
  params = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
  return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params)


def batches(sizes=(4, 4, 3)):
  """Rows of ragged weights, the last batch smaller, with a layout."""
  random = np.random.default_rng(0)
  for rows in sizes:
    order = np.broadcast_to(np.arange(9, dtype=np.int32), (rows, 9))
    layout = Layout(order, order, np.zeros_like(order), np.ones_like(order), np.zeros((rows, 9), bool))
    tokens = random.integers(0, VOCABULARY, (rows, 9)).astype(np.int32)
    weights = (np.arange(9) < random.integers(2, 10, (rows, 1))).astype(np.float32)
    yield {'tokens': tokens, 'weights': weights, 'layout': layout}


def nats(params) -> tuple[float, float]:
  """The total of -log p and the number of tokens, by numpy over the model's logits."""
  total = weight = 0.0
  for batch in batches():
    logits = np.asarray(MODEL.apply(params, jnp.asarray(batch['tokens']))[0], np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for row, (tokens, weights) in enumerate(zip(batch['tokens'], batch['weights'], strict=True)):
      for place in range(1, 9):
        total -= weights[place] * np.log(probabilities[row, place - 1, tokens[place]])
        weight += weights[place]
  return total, weight


def test_every_token_counts_once(params):
  total, weight = nats(params)
  result = evaluate(next_token_loss(MODEL), params, batches(), num_bytes=123)
  assert result.keys() == {'loss', 'perplexity', 'bits_per_byte'}
  assert result['loss'] == pytest.approx(total / weight, rel=1e-5)
  assert result['perplexity'] == pytest.approx(np.exp(total / weight), rel=1e-5)
  assert result['bits_per_byte'] == pytest.approx(total / np.log(2) / 123, rel=1e-5)


def test_a_uniform_model_costs_eight_bits_for_a_byte():
  def uniform(params, batch, rng):
    weight = jnp.sum(batch['weights'][:, 1:])
    return Mean(weight * jnp.log(256.0), weight), {}

  result = evaluate(uniform, {}, batches(), num_bytes=int(sum(b['weights'][:, 1:].sum() for b in batches())))
  assert result['bits_per_byte'] == pytest.approx(8)
  assert result['perplexity'] == pytest.approx(256)


def test_one_program_for_all_batches_and_evaluations(params):
  traces = []
  loss_fn = next_token_loss(MODEL)

  def traced(params, batch, rng):
    traces.append(batch['tokens'].shape)
    loss, _ = loss_fn(params, batch, rng)
    return loss, {'rows': Mean(jnp.sum(batch['weights'][:, 0]), jnp.ones(()))}

  first = evaluate(traced, params, batches())
  assert evaluate(traced, params, batches()) == first
  assert traces == [(4, 9)]
  assert first['rows'] == pytest.approx(11 / 3)


def test_no_data_is_said(params):
  for nothing in ([], [{'tokens': np.zeros((2, 9), np.int32), 'weights': np.zeros((2, 9), np.float32)}]):
    with pytest.raises(UserError, match='no token to predict'):
      evaluate(next_token_loss(MODEL), params, nothing)


def test_what_was_measured_of_the_same_parameters_is_not_measured_again():
  asked = []
  measure = once(lambda params: asked.append(params) or {'loss': float(len(asked))})
  first, other = {'a': 1}, {'a': 1}
  assert [measure(params)['loss'] for params in (first, first, other, other, first)] == [1, 1, 2, 2, 3]
