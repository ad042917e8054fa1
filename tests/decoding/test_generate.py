from collections import Counter
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.decoding import generate as module
from gpt_jax.decoding import steps
from gpt_jax.decoding.generate import Completion, generate, stream
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.decoding.steps import bucket, unstacked
from gpt_jax.models.attention import Banded, Dense
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.layers import GatedMlp, Mlp
from gpt_jax.models.masks import Causal, Prefix
from gpt_jax.models.positions import Alibi, Learned, Rotary
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.types import UserError, left_to_right

VOCABULARY = 31
GREEDY = Sampling(temperature=0)
PROMPTS = ([3, 1, 4, 1, 5, 9, 2, 6, 5], [7], [30, 2, 8, 18, 28])
NEW = 7

base = TransformerConfig(
  vocab_size=VOCABULARY, num_layers=2, model_dim=32, num_heads=4, num_kv_heads=4, mlp=Mlp(hidden=48)
)
PARTS = {
  'learned': dataclasses.replace(base, positions=Learned(24), tie_embeddings=False),
  'rotary, grouped queries': dataclasses.replace(base, rotation=Rotary(), num_kv_heads=2, mlp=GatedMlp(hidden=48)),
  'alibi, one key head': dataclasses.replace(base, score_bias=Alibi(), num_kv_heads=1, stacked=False),
  'banded': dataclasses.replace(base, rotation=Rotary(), attention=(Dense(), Banded(4))),
  'prefix': dataclasses.replace(base, rotation=Rotary(), attention=(Dense(Causal() | Prefix()),)),
}


@functools.cache
def build(config: TransformerConfig):
  """A model as decoding runs it, with parameters far enough from their start to prefer some tokens."""
  model = LanguageModel(config)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  noisy = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
  return model, tree.unflatten(noisy)


@functools.cache
def full_forward(config: TransformerConfig):
  """log p of the next token at every place of one row, read at once and without a cache; `split` ends the prompt."""
  model, params = build(config)

  @jax.jit
  def run(tokens, split):
    layout = left_to_right(tokens)
    prefix = layout.order < split
    return jax.nn.log_softmax(model.apply(params, tokens, dataclasses.replace(layout, prefix=prefix))[0])[0]

  def padded(tokens, split):
    # Padding comes last, where no mask lets the text see it.
    length = 24 if len(tokens) <= 24 else 96
    return np.asarray(run(jnp.array([[*tokens, *[0] * (length - len(tokens))]]), split))[: len(tokens)]

  return padded


def greedy_by_brute_force(config: TransformerConfig, prompt, number):
  tokens = list(prompt)
  for _ in range(number):
    tokens.append(int(full_forward(config)(tokens, len(prompt))[-1].argmax()))
  return tokens[len(prompt) :]


SLOW = ('learned', 'alibi, one key head')


@pytest.mark.parametrize(
  'parts', [pytest.param(parts, marks=[pytest.mark.slow] if parts in SLOW else []) for parts in PARTS]
)
def test_cached_ragged_batch_is_each_prompt_read_whole(parts):
  config = PARTS[parts]
  results = generate(*build(config), PROMPTS, max_new_tokens=NEW, sampling=GREEDY, stride=4)
  for prompt, result in zip(PROMPTS, results, strict=True):
    assert result.tokens.tolist() == greedy_by_brute_force(config, prompt, NEW)
    assert result.finish == 'length'
    text = [*prompt, *result.tokens.tolist()]
    places = np.arange(len(prompt) - 1, len(text) - 1)
    expected = full_forward(config)(text, len(prompt))[places, result.tokens]
    np.testing.assert_allclose(result.log_probabilities, expected, atol=1e-4)


def test_log_probabilities_are_of_the_model_not_of_the_warped_distribution():
  config = PARTS['learned']
  sampling = Sampling(temperature=2.0, top_k=3)
  (result,) = generate(*build(config), PROMPTS[:1], max_new_tokens=NEW, sampling=sampling, seed=5)
  text = [*PROMPTS[0], *result.tokens.tolist()]
  expected = full_forward(config)(text, len(PROMPTS[0]))[len(PROMPTS[0]) - 1 : -1]
  np.testing.assert_allclose(result.log_probabilities, expected[np.arange(NEW), result.tokens], atol=1e-4)
  assert all(token in np.argsort(-row)[:3] for token, row in zip(result.tokens, expected, strict=True))


def test_draws_depend_on_seed_row_and_token_alone():
  model, params = build(PARTS['learned'])
  run = lambda prompts=PROMPTS, **how: [r.tokens.tolist() for r in generate(model, params, prompts, **how)]
  reference = run(max_new_tokens=NEW, seed=1, stride=4)
  bigger = run(max_new_tokens=17, seed=1, stride=3, context=100)  # bucket
  assert bigger[2][:NEW] == reference[2]
  assert run(PROMPTS[:1], max_new_tokens=NEW, seed=1, stride=4) == reference[:1]
  assert run(max_new_tokens=NEW, seed=2, stride=4) != reference
  same = run([PROMPTS[0]] * 3, max_new_tokens=NEW, seed=1, stride=4)
  assert same[0] == reference[0]
  assert len({tuple(row) for row in same}) == 3


def test_first_token_is_drawn_from_the_models_distribution():
  config = PARTS['learned']
  rows = 4096
  results = generate(*build(config), [PROMPTS[1]] * rows, max_new_tokens=1, seed=3)
  found = np.bincount([r.tokens[0] for r in results], minlength=VOCABULARY) / rows
  expected = np.exp(full_forward(config)(PROMPTS[1], 1)[-1])
  assert 0.5 * np.abs(found - expected).sum() < 0.05


# ---- when a row ends -----------------------------------------------------------------------------------------------


def letters(ids) -> str:
  return ''.join(chr(ord('a') + i) for i in ids)


LONG = 14
FREE = PARTS['rotary, grouped queries']


@functools.cache
def free_run() -> tuple[Completion, ...]:
  """What each prompt gives when nothing stops it; drawn, as greedy text of a small model soon goes in circles."""
  model, params = build(FREE)
  return tuple(generate(model, params, PROMPTS, max_new_tokens=LONG, seed=11, stride=4))


@pytest.mark.parametrize('stride', [4, 16])
def test_stop_ids_end_their_row_and_are_kept(stride):
  free = free_run()
  stops = {int(free[0].tokens[5]), int(free[1].tokens[0])}
  results = generate(
    *build(FREE),
    PROMPTS,
    max_new_tokens=LONG,
    seed=11,
    stop_ids=sorted(stops),
    stride=stride,
  )
  for unstopped, result in zip(free, results, strict=True):
    hits = [place for place, token in enumerate(unstopped.tokens) if token in stops]
    end = hits[0] + 1 if hits else LONG
    assert result.tokens.tolist() == unstopped.tokens[:end].tolist()
    np.testing.assert_allclose(result.log_probabilities, unstopped.log_probabilities[:end], atol=1e-5)
    assert result.finish == ('stop' if hits else 'length')
  assert len(results[1].tokens) == 1


@pytest.mark.parametrize('start', [0, 1, 3, 4, 6, 11])  # drawn as 1 + 4 + 4 + 4 + 1: over, at and within the calls
def test_stop_strings_end_their_row_wherever_they_fall(start):
  free = free_run()
  word = letters(free[2].tokens)[start : start + 3]
  results = generate(
    *build(FREE),
    PROMPTS,
    max_new_tokens=LONG,
    seed=11,
    stop=('!', word),
    decode=letters,
    stride=4,
  )
  for unstopped, result in zip(free, results, strict=True):
    text = letters(unstopped.tokens)
    end = text.find(word) + len(word) if word in text else LONG
    assert letters(result.tokens) == text[:end]
    assert result.finish == ('stop' if word in text else 'length')
  assert results[2].finish == 'stop'


def test_a_prompt_that_holds_the_stop_string_goes_on():
  prompt = [1, 2, 3]
  word = letters(prompt)
  (result,) = generate(
    *build(PARTS['learned']), [prompt], max_new_tokens=4, stop=[word], decode=letters, seed=1, stride=4
  )
  assert result.finish == 'length'


@pytest.fixture
def calls(monkeypatch):
  """Counts the decoding calls, and the tokens each read."""
  seen = []
  decode = module.decode_tokens

  def counted(*args):
    before = int(args[4].count[0])
    state, drawn = decode(*args)
    seen.append(int(state.count[0]) - before)
    return state, drawn

  monkeypatch.setattr(module, 'decode_tokens', counted)
  return seen


def test_finished_rows_end_the_work(calls):
  free = free_run()
  model, params = build(FREE)
  run = functools.partial(generate, model, params, PROMPTS[:1], seed=11, stride=4)
  run(max_new_tokens=LONG)
  assert calls == [4, 4, 4, 1]
  calls.clear()
  tokens = free[0].tokens.tolist()
  place = tokens.index(tokens[6])
  run(max_new_tokens=LONG, stop_ids=[tokens[6]])
  assert sum(calls) == place  # not one token more than the stop id; the prompt's reading drew the first
  assert len(calls) == -(-place // 4)
  calls.clear()
  run(max_new_tokens=1)
  assert calls == []


def test_a_stream_brings_the_pieces_of_the_whole():
  model, params = build(FREE)
  stops = [int(free_run()[0].tokens[5])]
  pieces = list(stream(model, params, PROMPTS, max_new_tokens=LONG, seed=11, stop_ids=stops, stride=4))
  assert [len(row[0].tokens) for row in zip(*pieces, strict=True)] == [1, 1, 1]
  assert max(len(piece.tokens) for step in pieces for piece in step) == 4
  whole = generate(model, params, PROMPTS, max_new_tokens=LONG, seed=11, stop_ids=stops, stride=4)
  for row, result in zip(zip(*pieces, strict=True), whole, strict=True):
    assert np.concatenate([piece.tokens for piece in row]).tolist() == result.tokens.tolist()
    ends = [piece.finish for piece in row]
    assert ends[-1] == result.finish
    # Once finished, a row adds nothing while the others go on.
    assert not any(len(piece.tokens) for piece in row[ends.index(result.finish) + 1 :])


# ---- programs ------------------------------------------------------------------------------------------------------


def test_nothing_compiles_twice_within_a_bucket():
  model, params = unstacked(*build(PARTS['learned']))
  sizes = lambda: (steps.prefill._cache_size(), steps.decode_tokens._cache_size())
  run = functools.partial(generate, model, params, sampling=GREEDY, stride=4)
  five = [[1], [2, 3], [4] * 9, [5], [6]]  # so many rows as no other test reads
  run(five, max_new_tokens=5)
  before = sizes()
  for prompts, new, stop_ids, seed in [(five, 9, (), 1), ([[5], [6, 7], [8] * 12, [9], [2]], 3, (1, 2, 3), 2)]:
    run(prompts, max_new_tokens=new, stop_ids=stop_ids, seed=seed)
  assert sizes() == before
  run([[5] * 17, [6], [7], [8], [9]], max_new_tokens=5)
  assert sizes() == (before[0] + 1, before[1] + 1)


def test_the_cache_is_donated(monkeypatch):
  states = []
  decode = module.decode_tokens
  monkeypatch.setattr(module, 'decode_tokens', lambda *args: (states.append(args[4]), decode(*args))[1])
  generate(*build(PARTS['learned']), PROMPTS, max_new_tokens=NEW, sampling=GREEDY, stride=4)
  assert len(states) == 2
  assert all(layer.key.is_deleted() and layer.value.is_deleted() for state in states for layer in state.cache.layers)


def test_what_is_unstacked_stays_as_it_is():
  model, params = unstacked(*build(dataclasses.replace(PARTS['learned'], residual_dropout=0.5)))
  assert not model.config.stacked
  assert model.config.residual_dropout == 0
  again = unstacked(model, params)
  assert again[0] == model
  assert again[1] is params


def test_buckets_hold_what_they_are_for():
  sizes = [bucket(n) for n in range(1, 5000)]
  assert all(n <= size < max(1.125 * n + 1, n + 16) for n, size in enumerate(sizes, 1))
  assert [bucket(n) for n in (1, 16, 17, 128, 129, 1000, 1024, 1025)] == [16, 16, 32, 128, 144, 1024, 1024, 1152]
  assert max(Counter(size.bit_length() for size in set(sizes)).values()) <= 8


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('wrong', 'message'), [
  ({'prompts': []}, r'^prompts is empty'),
  ({'prompts': [[1], []]}, r'^prompts\[1\] is empty; .*end-of-text'),
  ({'prompts': [[1, 31]]}, r'^prompts\[0\] has token 31, but the vocabulary has 31; use the tokenizer'),
  ({'prompts': [[-1]]}, r'^prompts\[0\] has token -1'),
  ({'stop_ids': [99]}, r'^stop_ids has token 99'),
  ({'max_new_tokens': 0}, r'^max_new_tokens = 0 must be at least 1'),
  ({'stride': 0}, r'^stride = 0 must be at least 1'),
  ({'stop': ['x']}, r'^stop takes strings .*`decode`'),
  ({'stop': [''], 'decode': letters}, r'^stop takes strings that are not empty'),
  ({'prompts': [[1], [2] * 20]}, r'^prompts\[1\] of 20 tokens and max_new_tokens = 5 exceed the context of 24;'),
  ({'prompts': [[1] * 4], 'context': 8}, r'^prompts\[0\] of 4 .* context of 8'),
])  # fmt: skip
def test_bad_input_is_one_clear_line(wrong, message):
  with pytest.raises(UserError, match=message) as caught:
    generate(*build(PARTS['learned']), **{'prompts': [[1]], 'max_new_tokens': 5, **wrong})
  assert '\n' not in str(caught.value)


def test_the_whole_context_can_be_used():
  (result,) = generate(*build(PARTS['learned']), [[1] * 17], max_new_tokens=7, sampling=GREEDY)
  assert result.tokens.tolist() == greedy_by_brute_force(PARTS['learned'], [1] * 17, 7)
