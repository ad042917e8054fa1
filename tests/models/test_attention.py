"""Attention against a plain loop, and sparse patterns against dense attention under the same mask."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models.attention import LEAST_HALVED, Banded, Dense, Fixed, Strided
from gpt_jax.models.masks import Band, Causal, Mask, Prefix, SameSegment
from gpt_jax.models.positions import Alibi, FalconAlibi
from gpt_jax.models.softmax import softmax_attention
from gpt_jax.types import left_to_right
from tests.models.layouts import random_layout

attend = jax.jit(lambda *inputs: softmax_attention(*inputs)[0])


def random_heads(heads: int, kv_heads: int, rows: int = 3, length: int = 11, width: int = 6):
  keys = jax.random.split(jax.random.key(heads + 10 * kv_heads + 100 * length), 3)
  shapes = [(rows, length, n, width) for n in (heads, kv_heads, kv_heads)]
  return [jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]


def looped(query, key, value, visible, bias):
  """softmax(q k / sqrt(H) + bias) v in float64, a query and a head at a time, over the visible keys alone."""
  query, key, value, bias = (np.asarray(x, np.float64) for x in (query, key, value, bias))
  out = np.zeros_like(query)
  shared = query.shape[2] // key.shape[2]
  for b, t, n in np.ndindex(query.shape[:3]):
    seen = np.flatnonzero(visible[b, t])
    if len(seen):
      scores = np.array([query[b, t, n] @ key[b, s, n // shared] for s in seen]) / np.sqrt(query.shape[-1])
      weights = np.exp(scores + bias[b, n, t, seen])
      out[b, t, n] = weights @ value[b, seen, n // shared] / weights.sum()
  return out


@pytest.mark.parametrize('kv_heads', [4, 2, 1])
def test_attention_is_the_formula(kv_heads):
  query, key, value = random_heads(4, kv_heads)
  visible = jax.random.bernoulli(jax.random.key(1), 0.5, (3, 11, 11)) | jnp.eye(11, dtype=bool)
  bias = jax.random.normal(jax.random.key(2), (3, 4, 11, 11))
  np.testing.assert_allclose(
    attend(query, key, value, visible, bias), looped(query, key, value, visible, bias), atol=1e-5
  )


@pytest.mark.parametrize('kv_heads', [2, 1])
def test_grouped_queries_are_multi_head_with_keys_repeated(kv_heads):
  query, key, value = random_heads(4, kv_heads)
  visible = jnp.tril(jnp.ones((3, 11, 11), bool))
  repeat = lambda x: jnp.repeat(x, 4 // kv_heads, axis=2)
  np.testing.assert_allclose(
    attend(query, key, value, visible), attend(query, repeat(key), repeat(value), visible), atol=1e-6
  )


def test_softmax_is_float32_in_bfloat16():
  query, key, value = (x.astype(jnp.bfloat16) for x in random_heads(4, 2))
  visible = jnp.tril(jnp.ones((3, 11, 11), bool))
  got = attend(query, key, value, visible)
  assert got.dtype == jnp.bfloat16
  query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
  want = looped(query, key, value, visible, np.zeros((3, 4, 11, 11)))
  np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.03)


def both(pattern, oracle, layout, heads, bias):
  """Outputs of a pattern and of dense attention, and gradients by everything, where a token sees something."""
  query, key, value = heads
  sees = (layout.segment > 0)[:, :, None, None]
  weights = jax.random.normal(jax.random.key(3), query.shape) * sees

  def run(attention):
    def loss(query, key, value):
      out = attention(query, key, value, layout, layout, bias)
      return jnp.sum(out * weights), out * sees

    return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)

  return jax.jit(lambda *heads: (run(pattern)(*heads), run(oracle)(*heads)))(query, key, value)


PLAIN = lambda length: left_to_right(jnp.zeros((3, length), jnp.int32))
BANDED = {  # mask, layout, query heads, key heads, width, bias
  'whole blocks': (Causal(), PLAIN(12), 4, 4, 4, None),
  'ragged length': (Causal(), PLAIN(11), 4, 4, 4, None),
  'width 1': (Causal(), PLAIN(5), 4, 4, 1, None),
  'one block': (Causal(), PLAIN(4), 4, 4, 4, None),
  'one token more': (Causal(), PLAIN(5), 4, 4, 4, None),
  'packed and padded': (Causal(), random_layout(0, prefix=False), 4, 4, 3, None),
  'grouped': (Causal(), random_layout(1, prefix=False), 4, 2, 4, None),
  'multi-query': (Causal(), random_layout(2, prefix=False), 4, 1, 4, None),
  'prefix': (Causal() | Prefix(), random_layout(3), 4, 2, 3, None),
  'alibi': (Causal(), random_layout(4, prefix=False), 4, 2, 4, Alibi()),
  'prefix with alibi': (Causal() | Prefix(), random_layout(5), 4, 1, 4, Alibi()),
  'alibi of absolute places': (Causal(), random_layout(7, prefix=False), 4, 2, 4, FalconAlibi()),
}


@dataclasses.dataclass(frozen=True)
class Everything:
  """The plainest attention, of all queries and all keys."""

  mask: Mask

  def __call__(self, query, key, value, queries, keys, bias=None):
    visible = (self.mask & SameSegment())(queries, keys)
    scores = jnp.zeros((*visible.shape[:1], query.shape[2], *visible.shape[1:]))  # a bias keeps to plain gradients
    scores = scores if bias is None else bias(queries, keys, *query.shape[2:])
    return softmax_attention(query, key, value, visible, scores)[0]


@pytest.mark.parametrize('bias', [None, Alibi(), FalconAlibi()])
@pytest.mark.parametrize('length', [LEAST_HALVED, LEAST_HALVED + 1])
def test_a_long_row_cut_in_halves_is_whole(length, bias):
  layout = random_layout(6, 2, length, prefix=False)
  got, want = both(Dense(), Everything(Causal()), layout, random_heads(2, 1, 2, length), bias)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), got, want)


@pytest.mark.parametrize('case', BANDED)
def test_banded_is_dense_under_the_band(case):
  mask, layout, heads, kv_heads, width, bias = BANDED[case]
  pattern, oracle = Banded(width, mask), Everything(mask & Band(width))
  inputs = random_heads(heads, kv_heads, *layout.order.shape)
  got, want = both(pattern, oracle, layout, inputs, bias)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), got, want)
  assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(got)) > 0.1


# Written anew from the definitions (Child et al. 2019, section 4.2; the released code's `fixed` with `num_verts`): may
# the query at i of head h see the key at j, the mask apart?
def strided(stride, split=False):
  def sees(h, i, j):
    near, far = abs(i - j) < stride, abs(i - j) >= stride and (i - j) % stride == 0
    return (far if h % 2 else near) if split else near or far

  return sees


def fixed(block, summary=1, summaries=1, split=False):
  def sees(h, i, j):
    kind = (h // 2 if split else h) % summaries
    near = i // block == j // block
    far = not near and block - summary * (kind + 1) <= j % block < block - summary * kind
    return (far if h % 2 else near) if split else near or far

  return sees


FAR = {  # pattern, what it sees, layout, query heads, key heads, bias
  'strided': (Strided(3), strided(3), PLAIN(12), 4, 4, None),
  'strided, ragged, grouped': (Strided(4), strided(4), random_layout(1, prefix=False), 4, 2, None),
  'strided, long': (Strided(2), strided(2), random_layout(6, 2, LEAST_HALVED + 3, prefix=False), 2, 1, None),
  'strided, shorter than a stride': (Strided(16), strided(16), PLAIN(11), 4, 4, None),
  'strided, prefix, alibi': (
    Strided(3, mask=Causal() | Prefix()), strided(3), random_layout(5), 4, 1, Alibi()
  ),
  'strided, split': (Strided(3, split=True), strided(3, True), random_layout(2, prefix=False), 4, 2, None),
  'strided, split, alibi': (Strided(3, True), strided(3, True), random_layout(4, prefix=False), 4, 4, FalconAlibi()),
  'fixed': (Fixed(4), fixed(4), PLAIN(12), 4, 4, None),
  'fixed, ragged, multi-query': (Fixed(4, 2), fixed(4, 2), random_layout(1, prefix=False), 4, 1, None),
  'fixed, long': (Fixed(8, 2), fixed(8, 2), random_layout(6, 2, LEAST_HALVED + 3, prefix=False), 2, 1, None),
  'fixed, prefix': (Fixed(3, mask=Causal() | Prefix()), fixed(3), random_layout(3), 4, 2, None),
  'fixed, summaries': (Fixed(4, 1, 3), fixed(4, 1, 3), random_layout(7, prefix=False), 4, 2, None),
  'fixed, summaries, alibi': (Fixed(4, 2, 2), fixed(4, 2, 2), random_layout(8, prefix=False), 4, 4, Alibi()),
  'fixed, split summaries': (Fixed(4, 1, 2, True), fixed(4, 1, 2, True), random_layout(9, prefix=False), 4, 2, None),
}  # fmt: skip


def under(sees, mask, layout, heads):
  """What each head may see, [B, N, T, T]."""
  length = layout.order.shape[1]
  table = np.array([[[sees(h, i, j) for j in range(length)] for i in range(length)] for h in range(heads)])
  return np.asarray((mask & SameSegment())(layout, layout))[:, None] & table


@dataclasses.dataclass(frozen=True)
class Seen:
  """The plainest attention, of what a table says that each head sees."""

  table: np.ndarray

  def __call__(self, query, key, value, queries, keys, bias=None):
    scores = jnp.where(self.table, 0.0, -1e30)
    scores = scores if bias is None else scores + bias(queries, keys, *query.shape[2:])
    everything = jnp.ones(self.table.shape[:1] + self.table.shape[2:], bool)
    return softmax_attention(query, key, value, everything, scores)[0]


@pytest.mark.parametrize('case', FAR)
def test_near_and_far_parts_are_one_softmax(case):
  """Values and gradients; what sees nothing yet, in a head of its own for what is far, finds nothing."""
  pattern, sees, layout, heads, kv_heads, bias = FAR[case]
  table = under(sees, pattern.mask, layout, heads)
  inputs = random_heads(heads, kv_heads, *layout.order.shape)
  seeing = jnp.asarray(table.any(-1)).swapaxes(1, 2)[..., None]
  real = (layout.segment > 0)[..., None, None]

  def run(attention, sees):
    def loss(query, key, value):
      out = attention(query, key, value, layout, layout, bias) * sees
      return jnp.sum(jnp.sin(out)), out

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*inputs)

  results = run(pattern, real), run(Seen(table), seeing)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=3e-5), *results)
  assert all(float(jnp.abs(x).max()) > 0.1 for x in jax.tree.leaves(results[0]))


@pytest.mark.parametrize('case', ['strided', 'strided, split', 'fixed', 'fixed, summaries', 'fixed, split summaries'])
def test_what_is_read_from_a_cache_is_seen_as_in_a_whole_row(case):
  pattern, _, _, heads, kv_heads, _ = FAR[case]
  layout, (query, key, value) = PLAIN(11), random_heads(heads, kv_heads)
  last = jax.tree.map(lambda x: x[:, -3:], layout)
  whole = jax.jit(pattern)(query, key, value, layout, layout)
  np.testing.assert_allclose(jax.jit(pattern)(query[:, -3:], key, value, last, layout), whole[:, -3:], atol=1e-5)


COUNTED = {  # pattern, which of its keys a query of a head sees
  'dense': (Dense(), lambda h, i, j: True),
  'banded': (Banded(5), lambda h, i, j: i - j < 5),
  'strided': (Strided(3), strided(3)),
  'strided, split': (Strided(3, split=True), strided(3, True)),
  'fixed': (Fixed(4, 2), fixed(4, 2)),
  'fixed, split summaries': (Fixed(4, 1, 2, True), fixed(4, 1, 2, True)),
}


@pytest.mark.parametrize('case', COUNTED)
@pytest.mark.parametrize('length', [1, 4, 11, 12])
def test_keys_that_utilisation_counts_are_those_seen(case, length):
  pattern, sees = COUNTED[case]
  counts = [[sum(sees(h, i, j) for j in range(i + 1)) for i in range(length)] for h in range(4)]
  assert pattern.keys_seen(length, causal=True) == pytest.approx(np.mean(counts))
  assert pattern.keys_seen(length) >= pattern.keys_seen(length, causal=True)


@pytest.mark.parametrize(('pattern', 'share'), [(Strided(16), 4), (Fixed(16, 2), 4)])
def test_far_parts_save_work(pattern, share):
  layout, heads = PLAIN(512), random_heads(2, 2, 3, 512)

  def flops(pattern):
    compiled = jax.jit(lambda q, k, v: pattern(q, k, v, layout, layout, kernel='plain')).lower(*heads).compile()
    return compiled.cost_analysis()['flops']

  assert flops(pattern) < flops(Dense()) / share


def test_banded_saves_work():
  """Scores of a row are T times two widths, not T times T."""
  layout, heads = PLAIN(64), random_heads(2, 2, 3, 64)

  def flops(pattern):
    compiled = jax.jit(lambda q, k, v: pattern(q, k, v, layout, layout, kernel='plain')).lower(*heads).compile()
    return compiled.cost_analysis()['flops']

  assert flops(Banded(4)) < flops(Dense()) / 4


@pytest.mark.parametrize('pattern', [Dense(), Banded(4), Strided(4), Fixed(4), Fixed(4, 1, 2, split=True)])
def test_a_row_that_sees_nothing_is_finite(pattern):
  """Padding sees nothing: its output means nothing, but it must not spoil gradients."""
  layout = PLAIN(11)
  layout = layout.replace(segment=layout.segment.at[0].set(0).at[1, 5:].set(0))
  query, key, value = random_heads(4, 2)

  @jax.jit
  def run(*heads):
    out, pull = jax.vjp(lambda q, k, v: pattern(q, k, v, layout, layout, Alibi()), *heads)
    ones = jnp.ones_like(out)
    return out, pull(ones), pull(ones * (layout.segment > 0)[..., None, None])

  out, of_all, of_seeing = run(query, key, value)
  assert all(np.isfinite(x).all() for x in (out, *of_all))
  # What nobody may see has no gradient when the blind queries' outputs are weighted 0.
  assert all(not np.any(x[0]) and not np.any(x[1, 5:]) and np.any(x[2]) for x in of_seeing)


def test_a_cache_longer_than_the_queries_is_read_densely():
  """Banded asked about keys of another length falls back on dense attention under its band."""
  layout = PLAIN(11)
  last = jax.tree.map(lambda x: x[:, -2:], layout)
  query, key, value = random_heads(4, 2)
  want = jax.jit(Dense(Causal() & Band(4)))(query, key, value, layout, layout)[:, -2:]
  np.testing.assert_allclose(jax.jit(Banded(4))(query[:, -2:], key, value, last, layout), want, atol=1e-5)


def test_dropout_of_weights_keeps_their_mean():
  query, key, value = random_heads(4, 4)
  layout = PLAIN(11)
  kept = lambda rng: lambda w: jnp.where(jax.random.bernoulli(rng, 0.5, w.shape), 2 * w, 0)
  run = jax.jit(lambda rng: Dense()(query, key, value, layout, layout, drop=kept(rng)))
  mean = jax.lax.map(run, jax.random.split(jax.random.key(0), 2000)).mean(0)
  np.testing.assert_allclose(mean, Dense()(query, key, value, layout, layout), atol=0.15)
