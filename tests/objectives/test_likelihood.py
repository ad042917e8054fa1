"""The next-token loss: by hand, in chunks, weighted, and never with all logits in memory."""

import functools

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models.heads import LanguageModel, Unembedding
from gpt_jax.objectives.likelihood import cross_entropy, next_token, next_token_loss
from gpt_jax.types import left_to_right
from tests.models.small import VOCABULARY, parameters, random_tokens, shrunk

RNG = jax.random.key(0)


@struct.dataclass
class Table:
  """A stand-in for a model: the logits of the next token are the row of a table that the token names."""

  def apply(self, params, tokens, layout, method, rngs):
    del layout, rngs
    assert method == 'features'
    return params['logits'][tokens], jax.tree_util.Partial(lambda hidden: hidden), None


def test_loss_of_a_table_by_hand():
  """After 0 comes 1 with probability 3/4, after 1 comes 0 with probability 1/2."""
  params = {'logits': jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]]))}
  batch = {'tokens': jnp.array([[0, 1, 0, 1]]), 'weights': jnp.ones((1, 4))}
  loss, _ = next_token_loss(Table())(params, batch, RNG)
  np.testing.assert_allclose(loss.total, -(2 * np.log(0.75) + np.log(0.5)), rtol=1e-6)
  assert loss.weight == 3
  # The weight of a token is that of predicting it: here only the 0 in the middle counts.
  loss, _ = next_token_loss(Table())(params, batch | {'weights': jnp.array([[1.0, 0, 2, 0]])}, RNG)
  np.testing.assert_allclose(loss.total, -2 * np.log(0.5), rtol=1e-6)
  assert loss.weight == 2


def test_tokens_are_shifted_in_one_place():
  tokens, weights = random_tokens(), jnp.arange(24.0).reshape(2, 12)
  inputs, layout, targets, target_weights = next_token(
    {'tokens': tokens, 'weights': weights, 'layout': left_to_right(tokens)}
  )
  np.testing.assert_array_equal(inputs, tokens[:, :-1])
  np.testing.assert_array_equal(targets, tokens[:, 1:])
  np.testing.assert_array_equal(target_weights, weights[:, 1:])
  assert layout is not None and layout.order.shape == inputs.shape and layout.order[0, 0] == 0


def test_cross_entropy_and_z_loss():
  """Logits 0, ln 2, ln 5: Z is 8."""
  nll, z = cross_entropy(jnp.log(jnp.array([[1.0, 2.0, 5.0]])), jnp.array([1]), z_loss=0.1)
  np.testing.assert_allclose(nll, np.log(8 / 2), rtol=1e-6)
  np.testing.assert_allclose(z, 0.1 * np.log(8) ** 2, rtol=1e-6)


@struct.dataclass
class Features:
  """A model whose hidden states are parameters: what is left is the loss's own arithmetic and memory."""

  softcap: float | None = None
  dtype: str = 'float32'

  def apply(self, params, tokens, layout, method, rngs):
    del tokens, layout, method, rngs
    return params['hidden'].astype(self.dtype), Unembedding(params['table'], self.softcap), None


def ragged_batch():
  """Weights of a half, and of none: the end of one row, all of another."""
  weights = jax.random.choice(jax.random.key(2), jnp.array([0.5, 1.0, 2.0]), (3, 12))
  return {'tokens': random_tokens(rows=3), 'weights': weights.at[0, 7:].set(0).at[2].set(0)}


def hidden_and_table():
  keys = jax.random.split(jax.random.key(3))
  return {
    'hidden': jax.random.normal(keys[0], (3, 11, 8)),
    'table': jax.random.normal(keys[1], (VOCABULARY, 8)),
  }


def value_and_gradient(model, params, z_loss, chunk):
  """Of the loss under test: ((value, metrics), gradient)."""

  def value(params):
    loss, metrics = next_token_loss(model, z_loss=z_loss, chunk=chunk)(params, ragged_batch(), RNG)
    return 3 * loss.value, (loss, metrics)  # 3: what comes back into the loss need not be 1

  (_, aux), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(params)
  return aux, jax.tree.map(lambda x: x / 3, gradient)


def plain(logits_of, params, z_loss):
  """The same from all logits at once, by log_softmax and plain differentiation."""
  batch = ragged_batch()

  def value(params):
    logits = logits_of(params)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch['tokens'][:, 1:, None], -1)[..., 0]
    z = z_loss * jnp.log(jnp.sum(jnp.exp(logits), -1)) ** 2
    weights = batch['weights'][:, 1:]
    return jnp.sum((z - chosen) * weights) / jnp.sum(weights), jnp.sum(-chosen * weights) / jnp.sum(weights)

  return jax.jit(jax.value_and_grad(value, has_aux=True))(params)


def whole(params, softcap=None):
  logits = params['hidden'] @ params['table'].T
  return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


@pytest.mark.parametrize(
  ('chunk', 'z_loss', 'softcap'),
  # T is 11, which 4 does not divide.
  [(None, 1e-2, 3.0), (11, 1e-2, None), (1, 1e-2, 3.0), (4, 1e-2, 3.0), (4, 0.0, None), (100, 0.0, 3.0)],
)
def test_chunked_is_plain(chunk, z_loss, softcap):
  params = hidden_and_table()
  (loss, metrics), gradient = value_and_gradient(Features(softcap), params, z_loss, chunk)
  (want, nll), want_gradient = plain(functools.partial(whole, softcap=softcap), params, z_loss)
  np.testing.assert_allclose(loss.value, want, rtol=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), gradient, want_gradient)
  assert set(metrics) == ({'nll'} if z_loss else set())
  if z_loss:
    np.testing.assert_allclose(metrics['nll'].value, nll, rtol=1e-5)
  # Evaluation takes the value alone: another path than the differentiated one.
  alone, _ = jax.jit(next_token_loss(Features(softcap), z_loss=z_loss, chunk=chunk))(params, ragged_batch(), RNG)
  np.testing.assert_allclose(alone.value, want, rtol=1e-5)


def test_bfloat16_features_are_close_and_gradients_float32():
  params = hidden_and_table()
  (loss, _), gradient = value_and_gradient(Features(dtype='bfloat16'), params, 1e-2, 4)
  (want, _), want_gradient = plain(whole, params, 1e-2)
  assert loss.total.dtype == jnp.float32
  assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype('float32')}
  np.testing.assert_allclose(loss.value, want, rtol=0.02)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=0.02 * np.abs(y).max()), gradient, want_gradient)


@pytest.mark.parametrize('tied', [True, False])
def test_chunks_of_a_language_model_are_plain(tied):
  cfg = shrunk('llama2_7b', tie_embeddings=tied)
  model, params = LanguageModel(cfg), parameters(cfg)
  logits_of = lambda params: model.apply(params, ragged_batch()['tokens'][:, :-1])[0]
  (loss, _), gradient = value_and_gradient(model, params, 0.0, 4)
  (want, _), want_gradient = plain(logits_of, params, 0.0)
  np.testing.assert_allclose(loss.value, want, rtol=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), gradient, want_gradient)


def test_tokens_without_weight_do_not_count():
  """Neither what they are nor whether the row is there; nothing that counts is a loss of 0."""
  cfg = shrunk('gpt2_small')
  loss_fn = jax.jit(next_token_loss(LanguageModel(cfg), chunk=4))
  batch, params = ragged_batch(), parameters(cfg)
  loss, _ = loss_fn(params, batch, RNG)
  last = batch['tokens'].at[0, 7:].add(1).at[2].add(1) % VOCABULARY
  other, _ = loss_fn(params, batch | {'tokens': last}, RNG)
  np.testing.assert_allclose(loss.total, other.total, rtol=1e-6)
  none, _ = loss_fn(params, batch | {'weights': jnp.zeros((3, 12))}, RNG)
  assert none.value == 0


V, T, D = 50_257, 1024, 64


def temporary_bytes(chunk: int | None) -> int:
  """What the compiled gradient of the loss needs besides its inputs and outputs, at GPT-2's vocabulary."""
  shape = jax.ShapeDtypeStruct
  params = {'hidden': shape((1, T, D), jnp.float32), 'table': shape((V, D), jnp.float32)}
  batch = {'tokens': shape((1, T + 1), jnp.int32), 'weights': shape((1, T + 1), jnp.float32)}
  loss = lambda params, batch: next_token_loss(Features(), chunk=chunk)(params, batch, RNG)[0].value
  return jax.jit(jax.grad(loss)).lower(params, batch).compile().memory_analysis().temp_size_in_bytes


def test_all_logits_never_exist():
  """In chunks of 128 the peak is a few [128, V] and the gradient of the table, less than one [T, V] in float32."""
  logits, table = 4 * T * V, 4 * D * V
  assert temporary_bytes(None) >= logits
  assert temporary_bytes(128) < 4 * logits / 8 + 4 * table < logits
