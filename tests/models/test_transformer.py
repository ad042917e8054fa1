"""The Transformer: forms that must agree, what must not be seen, dropout, numbers kept in float32, and bad configs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models.attention import Banded, Dense
from gpt_jax.models.deepnorm import DeepNet, Glm
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.residual import Parallel, PostNorm, PreNorm
from gpt_jax.models.transformer import REMAT, unstack
from gpt_jax.types import left_to_right
from tests.models.small import LENGTH, VOCABULARY, logits, parameters, random_tokens, shrunk

GPT3 = shrunk('gpt3_125m')  # two patterns a period, so two periods are four layers
LLAMA = shrunk('llama2_70b')
ALTERNATIVES = [*({'remat': name} for name in REMAT), {'stacked': False, 'remat': 'full'}]


@functools.cache
def loss_and_gradient(cfg):
  """A loss of all logits, its gradient by the parameters of the stacked form, whatever form `cfg` has."""
  params, tokens = parameters(dataclasses.replace(cfg, stacked=True, remat=None)), random_tokens()
  weights = jax.random.normal(jax.random.key(5), (*tokens.shape, VOCABULARY))

  def loss(params):
    if not cfg.stacked:
      params = unstack(params)
    out, _ = LanguageModel(cfg).apply(params, tokens)
    return jnp.mean(out * weights), out

  return jax.jit(jax.grad(loss, has_aux=True))(params)


@pytest.mark.parametrize('fields', ALTERNATIVES, ids=str)
def test_scanned_looped_and_rematerialised_agree(fields):
  gradient, out = loss_and_gradient(dataclasses.replace(GPT3, **fields))
  want_gradient, want = loss_and_gradient(GPT3)
  np.testing.assert_allclose(out, want, atol=2e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), gradient, want_gradient)
  assert all(np.any(x) for x in jax.tree.leaves(gradient)), 'every parameter takes part'


def test_remat_keeps_less():
  """The compiled gradient of a rematerialised model needs less memory for what is kept."""
  cfg = dataclasses.replace(shrunk('gpt2_small'), num_layers=8)
  tokens = random_tokens(rows=8, length=16)

  def kept(remat):
    model = LanguageModel(dataclasses.replace(cfg, remat=remat))
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    loss = lambda params: jnp.mean(model.apply(params, tokens)[0] ** 2)
    return jax.jit(jax.grad(loss)).lower(shapes).compile().memory_analysis().temp_size_in_bytes

  full, dots, everything = kept('full'), kept('dots'), kept(None)
  assert full < dots < everything and full < 0.7 * everything


PACKED = {'gpt2 (learned)': shrunk('gpt2_small'), 'gpt3 (banded)': GPT3, 'llama (rotary)': LLAMA}


def packed(tokens):
  """Two documents of 5 and 4 tokens in each row, then padding."""
  layout = left_to_right(tokens)
  place = jnp.arange(LENGTH)
  segment = jnp.where(place < 5, 1, jnp.where(place < 9, 2, 0))
  position = jnp.where(place < 5, place, jnp.where(place < 9, place - 5, 0))
  tile = lambda x: jnp.broadcast_to(x, tokens.shape)
  return layout.replace(segment=tile(segment), position=tile(position))


@pytest.mark.parametrize('name', PACKED)
def test_packed_documents_are_as_if_alone(name):
  cfg = PACKED[name]
  tokens, params = random_tokens(), parameters(cfg)
  got = logits(cfg, params, tokens, packed(tokens))
  np.testing.assert_allclose(got[:, :5], logits(cfg, params, tokens[:, :5]), atol=2e-5)
  np.testing.assert_allclose(got[:, 5:9], logits(cfg, params, tokens[:, 5:9]), atol=2e-5)


def test_padding_is_unseen():
  tokens, params = random_tokens(), parameters(GPT3)
  left = packed(tokens)  # a row may also begin with padding
  left = left.replace(segment=jnp.where(left.order < 3, 0, 1), position=jnp.maximum(left.order - 3, 0))
  changed = tokens.at[:, :3].set((tokens[:, :3] + 1) % VOCABULARY)
  got, other = (logits(GPT3, params, x, left) for x in (tokens, changed))
  np.testing.assert_array_equal(got[:, 3:], other[:, 3:])
  np.testing.assert_allclose(got[:, 3:], logits(GPT3, params, tokens[:, 3:]), atol=2e-5)
  assert np.isfinite(got).all()


DROPOUTS = ('embedding_dropout', 'attention_dropout', 'residual_dropout')


@pytest.mark.parametrize('field', DROPOUTS)
def test_dropout_drops_by_seed_and_not_in_evaluation(field):
  cfg = dataclasses.replace(shrunk('gpt2_small'), **{field: 0.5})
  tokens, params = jnp.tile(random_tokens(rows=1), (2, 1)), parameters(shrunk('gpt2_small'))
  run = jax.jit(lambda seed: LanguageModel(cfg).apply(params, tokens, rngs={'dropout': jax.random.key(seed)})[0])
  first, again, other = run(0), run(0), run(1)
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 0.1
  assert np.abs(first[0] - first[1]).max() > 0.1, 'two rows of the same text drop apart'
  assert cfg.evaluated() == shrunk('gpt2_small')  # whose `apply` in every other test needs no seed


def test_every_sublayer_of_every_layer_drops_apart():
  """Each of the four sublayers of two layers adds 1 to a zero stream, dropped to 0 or 2: sums are 0, 2, 4, 6 and 8.

  Were a mask used twice, there would be fewer sums; the norm at the end only moves and stretches them.
  """
  cfg = dataclasses.replace(shrunk('gpt2_small'), residual_dropout=0.5)

  def written(path, x):
    names = [key.key for key in path]
    return jnp.full_like(x, names[-2:] in (['out', 'bias'], ['down', 'bias']) or names[-1] == 'scale')

  params = jax.tree_util.tree_map_with_path(written, parameters(shrunk('gpt2_small')))
  run = jax.jit(functools.partial(LanguageModel(cfg).apply, method='features'))
  hidden, _, _ = run(params, random_tokens(), rngs={'dropout': jax.random.key(0)})
  assert max(len(np.unique(np.round(token, 3))) for token in np.asarray(hidden).reshape(-1, 32)) == 5


@pytest.mark.parametrize('family', ['gpt3_125m', 'llama2_70b', 'glm_130b'])
def test_bfloat16_is_close_and_parameters_stay_float32(family):
  cfg = shrunk(family)
  low = dataclasses.replace(cfg, dtype='bfloat16')
  tokens, params = random_tokens(), parameters(cfg)
  shapes = jax.eval_shape(LanguageModel(low).init, jax.random.key(0), tokens)
  assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}
  hidden = jax.eval_shape(lambda p: LanguageModel(low).apply(p, tokens, method='features')[0], shapes)
  assert hidden.dtype == jnp.bfloat16
  got, want = logits(low, params, tokens), logits(cfg, params, tokens)
  assert got.dtype == jnp.float32
  assert 0 < np.abs(got - want).max() < 0.06 * np.abs(want).max()


def test_softcap_bounds_the_logits():
  cfg = dataclasses.replace(LLAMA, logit_softcap=2.0)
  tokens, params = random_tokens(), parameters(LLAMA)
  plain = logits(LLAMA, params, tokens)
  np.testing.assert_allclose(logits(cfg, params, tokens), 2 * np.tanh(np.asarray(plain) / 2), atol=1e-5)
  assert np.abs(plain).max() > 2


@pytest.mark.parametrize('tied', [True, False])
def test_the_unembedding_is_the_embedding_only_if_tied(tied):
  cfg = dataclasses.replace(LLAMA, tie_embeddings=tied)
  params = parameters(cfg)['params']
  assert ('unembed' in params) is not tied
  table = params['transformer']['embed'] if tied else params['unembed']
  features = jax.jit(lambda params: LanguageModel(cfg).apply({'params': params}, random_tokens(), method='features'))
  hidden, unembed, _ = features(params)
  np.testing.assert_allclose(unembed(hidden), hidden @ table['embedding'].T, atol=1e-4)


def test_the_embedding_gets_a_part_of_its_gradient_and_all_else_the_same():
  cfg = dataclasses.replace(shrunk('glm_130b'), tie_embeddings=False, embedding_gradient=1.0)
  params = parameters(cfg)
  loss = lambda cfg: lambda params: jnp.sum(jnp.sin(LanguageModel(cfg).apply(params, random_tokens())[0]))
  whole, tenth = (
    jax.jit(jax.value_and_grad(loss(dataclasses.replace(cfg, embedding_gradient=part))))(params) for part in (1.0, 0.1)
  )
  np.testing.assert_allclose(tenth[0], whole[0], rtol=1e-5)
  scaled = jax.tree.map(lambda x: x, whole[1])
  scaled['params']['transformer']['embed']['embedding'] *= 0.1
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
  jax.tree.map(close, tenth[1], scaled)
  assert float(jnp.abs(scaled['params']['transformer']['embed']['embedding']).max()) > 1e-2


# ---- residual parts, by hand: f(x) = 2 x, g(x) = x + 1, norms that multiply by 10, 100, 1000 or 10,000 ----

NORMS = {'norm_embedding': 10.0, 'norm_attention': 100.0, 'norm_mlp': 1000.0, 'norm_final': 10_000.0}
norm = lambda name: lambda x: NORMS[name] * x
f, g = (lambda x: 2 * x), (lambda x: x + 1)


@pytest.mark.parametrize(
  ('part', 'begin', 'block', 'finish'),
  [
    (PreNorm(), 3.0, (3 + 600) + (1000 * 603 + 1), 30_000.0),
    (PostNorm(), 3.0, 1000 * (900 + 901), 3.0),
    (PostNorm(alpha=4.0), 3.0, 1000 * (4 * 1800 + 1801), 3.0),  # DeepNorm: norm(alpha x + f(x))
    (PostNorm(alpha=4.0, norm_embedding=True), 30.0, 1000 * (4 * 1800 + 1801), 3.0),
    (PostNorm(alpha=Glm()), 3.0, 1000 * (4 * 1800 + 1801), 3.0),  # of 8 layers, (2 * 8)^(1/2)
    (PostNorm(alpha=DeepNet()), 3.0, 1000 * (2 * 1200 + 1201), 3.0),  # (2 * 8)^(1/4)
    (Parallel(shared_norm=True), 3.0, 3 + 600 + 301, 30_000.0),
    (Parallel(shared_norm=False), 3.0, 3 + 600 + 3001, 30_000.0),
  ],
  ids=str,
)
def test_residual_by_hand(part, begin, block, finish):
  x = jnp.array(3.0)
  assert part.begin(x, norm) == begin
  assert part.block(x, f, g, norm, 8) == block
  assert part.finish(x, norm) == finish


def test_the_second_norm_of_a_parallel_block_is_its_own_parameter():
  one, two = (
    parameters(shrunk(name))['params']['transformer']['blocks']['block_0'] for name in ('falcon_7b', 'falcon_40b')
  )
  assert two.keys() - one.keys() == {'norm_mlp'}


# ---- configs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'num_layers': 3}, 'num_layers = 3 must be a multiple of 2'),
    ({'num_heads': 3, 'num_kv_heads': 2}, 'num_heads = 3 must be a multiple of 2'),
    ({'model_dim': 33}, 'model_dim = 33 must be a multiple of 4'),
    ({'num_layers': 0}, 'num_layers = 0 must be a multiple of 2'),
    ({'num_kv_heads': 0}, 'num_heads = 4 must be a multiple of 0'),
  ],
)
def test_numbers_that_do_not_fit_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(shrunk('gpt2_small'), **{'attention': (Dense(), Banded(4)), 'num_layers': 2, **fields})


def test_head_width_may_be_given():
  cfg = dataclasses.replace(LLAMA, head_dim=6)
  assert cfg.head_width == 6 and LLAMA.head_width == 8
  shapes = jax.eval_shape(LanguageModel(cfg).init, jax.random.key(0), random_tokens())
  assert shapes['params']['transformer']['blocks']['block_0']['attention']['query']['kernel'].shape == (2, 32, 4, 6)
