"""The loss of Medusa's heads: by hand, in chunks, and over the ends of rows and documents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models.heads import LanguageModel, Medusa
from gpt_jax.objectives.likelihood import next_token, tokens_ahead
from gpt_jax.objectives.medusa import among_likeliest, apart, joint_loss, medusa_loss, together
from gpt_jax.types import Layout, left_to_right
from tests.models.small import parameters, random_tokens, shrunk

RNG = jax.random.key(0)
HEADS = 3


def test_what_is_guessed_where():
  """Row 0: two documents, of 4 tokens and of 3. Row 1: the last two tokens are padding."""
  tokens = jnp.arange(14).reshape(2, 7)
  weights = jnp.array([[0.0, 1, 1, 1, 0, 1, 1], [0, 1, 2, 1, 1, 0, 0]])
  segment = jnp.array([[1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0]])
  layout = left_to_right(tokens).replace(segment=segment)
  targets, found = tokens_ahead({'tokens': tokens, 'weights': weights, 'layout': layout}, 2)
  np.testing.assert_array_equal(targets[0, :, 0], [2, 3, 4, 5, 6, 0])
  np.testing.assert_array_equal(targets[0, :, 1], [3, 4, 5, 6, 0, 0])
  np.testing.assert_array_equal(found[0, :, 0], [1, 1, 0, 0, 1, 0])
  np.testing.assert_array_equal(found[0, :, 1], [1, 0, 0, 0, 0, 0])
  np.testing.assert_array_equal(found[1, :, 0], [2, 1, 1, 0, 0, 0])
  np.testing.assert_array_equal(found[1, :, 1], [1, 1, 0, 0, 0, 0])
  _, alone = tokens_ahead({'tokens': tokens, 'weights': weights}, 2)
  np.testing.assert_array_equal(alone[0, :, 0], [1, 1, 0, 1, 1, 0])


class Table:
  """Stands in for heads: hidden states are logits, of head 2 in the other order."""

  def apply(self, params, hidden, method):
    assert method == 'features'
    same = jax.tree_util.Partial(lambda x: x)
    return jnp.stack([hidden, hidden[..., ::-1]], axis=-2), (same, same)


def test_loss_by_hand():
  """p = (1/2, 1/4, 1/4) everywhere: head 1 guesses by it, head 2 by (1/4, 1/4, 1/2)."""
  batch = {
    'tokens': jnp.array([[0, 1, 0, 2]]),
    'weights': jnp.ones((1, 4)),
    'hidden': jnp.broadcast_to(jnp.log(jnp.array([0.5, 0.25, 0.25])), (1, 3, 3)),
  }
  loss, metrics = medusa_loss(Table(), decay=0.8, top=2)({}, batch, RNG)
  # Head 1 guesses tokens 0, 2 from places 0, 1; head 2 guesses token 2 from place 0.
  np.testing.assert_allclose(loss.total, 0.8 * (np.log(2) + np.log(4)) + 0.64 * np.log(2), rtol=1e-6)
  assert loss.weight == 2
  np.testing.assert_allclose(metrics['head_1_loss'].value, (np.log(2) + np.log(4)) / 2, rtol=1e-6)
  np.testing.assert_allclose(metrics['head_2_loss'].value, np.log(2), rtol=1e-6)
  found = {name: float(mean.value) for name, mean in metrics.items() if 'top' in name}
  assert found == {'head_1_top_1': 0.5, 'head_1_top_2': 0.5, 'head_2_top_1': 1.0, 'head_2_top_2': 1.0}


def test_tokens_that_heads_do_not_know():
  """As above, but the logits are of tokens 0, 2 and 5: what is another costs nothing, and no guess is right there."""
  batch = {
    'tokens': jnp.array([[7, 1, 2, 5, 3, 9]]),
    'weights': jnp.ones((1, 6)),
    'hidden': jnp.broadcast_to(jnp.log(jnp.array([0.5, 0.25, 0.25])), (1, 5, 3)),
  }
  loss, metrics = medusa_loss(Table(), decay=0.8, top=2, vocabulary=np.array([0, 2, 5]))({}, batch, RNG)
  # Head 1 has 2, 5, 3, 9 to guess, by (1/2, 1/4, 1/4); head 2 has 5, 3, 9, by (1/4, 1/4, 1/2).
  np.testing.assert_allclose(loss.total, 0.8 * 2 * np.log(4) + 0.64 * np.log(2), rtol=1e-6)
  assert loss.weight == 2
  np.testing.assert_allclose(metrics['head_1_loss'].value, np.log(4), rtol=1e-6)
  np.testing.assert_allclose(metrics['head_2_loss'].value, np.log(2), rtol=1e-6)
  found = {name: float(mean.value) for name, mean in metrics.items() if 'top' in name}
  third = pytest.approx(1 / 3)
  assert found == {'head_1_top_1': 0.0, 'head_1_top_2': 0.25, 'head_2_top_1': third, 'head_2_top_2': third}


def test_the_likeliest_are_those_of_top_k():
  logits = jnp.round(jax.random.normal(jax.random.key(1), (40, 31)))  # with many equals
  targets = jax.random.randint(jax.random.key(2), (40,), 0, 31)
  best = jax.lax.top_k(logits, 9)[1]
  expected = np.stack([(best[:, :i] == targets[:, None]).any(1) for i in range(1, 10)], 1)
  np.testing.assert_array_equal(among_likeliest(logits, targets, 9), expected)


def heads(shared: bool = False):
  medusa = Medusa(shrunk('llama2_7b', logit_softcap=3.0), HEADS, shared)
  shapes = jax.eval_shape(medusa.init, RNG, jnp.zeros((1, 32)))
  rng = np.random.default_rng(0)
  return medusa, jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), shapes)


def ragged():
  tokens = random_tokens(rows=3)
  segment = jnp.array([[1] * 5 + [2] * 7, [1] * 12, [1] * 6 + [0] * 6])
  zeros = jnp.zeros_like(tokens)
  order = jnp.broadcast_to(jnp.arange(12), tokens.shape)
  weights = jax.random.choice(jax.random.key(2), jnp.array([0.5, 1.0, 2.0]), (3, 12)) * (segment > 0)
  hidden = jax.random.normal(jax.random.key(3), (3, 11, 32))
  layout = Layout(order, order, zeros, segment, zeros > 0)
  return {'tokens': tokens, 'weights': weights, 'layout': layout, 'hidden': hidden}


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('chunk', [None, 1, 4, 11])
def test_chunked_is_plain(chunk, shared):
  """The value, the metrics and the gradient are those of all logits at once."""
  medusa, params = heads(shared)
  batch = ragged()
  targets, weights = tokens_ahead(batch, HEADS)

  def plain(params):
    logprobs = jax.nn.log_softmax(medusa.apply(params, batch['hidden']))
    nll = -jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]
    loss = sum(0.7**k * jnp.sum(nll[..., k - 1] * weights[..., k - 1]) for k in range(1, HEADS + 1))
    return loss / weights[..., 0].sum(), nll

  def ours(params):
    loss, metrics = medusa_loss(medusa, decay=0.7, chunk=chunk)(params, batch, RNG)
    return loss.value, metrics

  (value, metrics), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
  (expected, nll), expected_gradient = jax.jit(jax.value_and_grad(plain, has_aux=True))(params)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), gradient, expected_gradient)
  for k in range(HEADS):
    mean = (nll * weights)[..., k].sum() / weights[..., k].sum()
    np.testing.assert_allclose(metrics[f'head_{k + 1}_loss'].value, mean, rtol=1e-5)


@pytest.mark.parametrize('chunk', [None, 4])
def test_of_model_and_heads_together(chunk):
  """Value, metrics and gradient: the model's own mean, and weight times the heads' sum over the same places."""
  medusa, of_heads = heads()
  model = LanguageModel(medusa.config)
  base, batch = parameters(medusa.config), ragged()
  del batch['hidden']
  inputs, layout, targets, weights = next_token(batch)

  def plain(params):
    own, guessing = apart(params)
    hidden, _, _ = model.apply(own, inputs, layout, method='features')
    logprobs = jax.nn.log_softmax(model.apply(own, inputs, layout)[0])
    nll = -jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]
    ahead, _ = medusa_loss(medusa)(guessing, {**batch, 'hidden': hidden}, RNG)
    return (jnp.sum(nll * weights) + 0.3 * ahead.total) / weights.sum(), jnp.sum(nll * weights) / weights.sum()

  def ours(params):
    loss, metrics = joint_loss(model, medusa_loss(medusa, chunk=chunk), weight=0.3, chunk=chunk)(params, batch, RNG)
    assert set(metrics) == {'nll', *medusa_loss(medusa)(of_heads, ragged(), RNG)[1]}
    return loss.value, metrics['nll'].value

  params = together(base, of_heads)
  jax.tree.map(np.testing.assert_array_equal, apart(params), (base, of_heads))
  (value, nll), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
  (expected, expected_nll), expected_gradient = jax.jit(jax.value_and_grad(plain, has_aux=True))(params)
  np.testing.assert_allclose((value, nll), (expected, expected_nll), rtol=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), gradient, expected_gradient)


V, T, D = 32_003, 512, 64


def temporary_bytes(chunk: int | None) -> int:
  """What the compiled gradient needs besides inputs and outputs."""
  medusa = Medusa(shrunk('llama2_7b', vocab_size=V, model_dim=D), 4)
  shape = jax.ShapeDtypeStruct
  params = jax.eval_shape(medusa.init, RNG, jnp.zeros((1, D)))
  batch = {
    'tokens': shape((1, T + 1), jnp.int32),
    'weights': shape((1, T + 1), jnp.float32),
    'hidden': shape((1, T, D), jnp.float32),
  }
  loss = lambda params, batch: medusa_loss(medusa, chunk=chunk)(params, batch, RNG)[0].value
  return jax.jit(jax.grad(loss)).lower(params, batch).compile().memory_analysis().temp_size_in_bytes


def test_logits_of_all_heads_never_exist():
  """Nor those of one head at all places: a few [64, V], and the gradient of the tables."""
  whole, tables = 4 * T * V, 4 * 4 * V * D
  assert temporary_bytes(64) < whole + 3 * tables < 4 * whole <= temporary_bytes(None)
