"""Beam search against plain Python that reads every text whole, against all texts there are, and by hand."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.decoding import steps
from gpt_jax.decoding.beam import beam_search, search
from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import RepetitionPenalty, Sampling
from gpt_jax.decoding.steps import unstacked
from gpt_jax.types import UserError
from tests.decoding.test_generate import PARTS, VOCABULARY, build, full_forward

NEW, WIDTH = 7, 3
# The first with NEW more tokens fills the learned positions.
PROMPTS = ([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2], [7], [30, 2, 8, 18, 28])
ROTARY = PARTS['rotary, grouped queries']


def found(config, prompts=PROMPTS, **how):
  return beam_search(
    *build(config), prompts, **{'max_new_tokens': NEW, 'num_beams': WIDTH, 'num_return_sequences': WIDTH, **how}
  )


@functools.cache
def following(config, prompt, text):
  return full_forward(config)([*prompt, *text], len(prompt))[-1].astype(float)


def reference(config, prompt, stop_ids=(), length_penalty=1.0, early_stopping=False, num_beams=WIDTH, limit=NEW):
  """(score, log p, text) of the best texts: one row, without a cache, one text after the other."""
  running, ended = [(0.0, ())], []
  for length in range(1, limit + 1):
    candidates = sorted(
      ((total + log_p, (*text, token)) for total, text in running
       for token, log_p in enumerate(following(config, tuple(prompt), text))),
      reverse=True,
    )  # fmt: skip
    ends = lambda text: text[-1] in stop_ids or len(text) == limit
    ended += [(total / length**length_penalty, total, text) for total, text in candidates[:num_beams] if ends(text)]
    ended = sorted(ended, reverse=True)[:num_beams]
    running = [(total, text) for total, text in candidates if not ends(text)][:num_beams]
    if not running:
      break
    reach = limit if early_stopping == 'never' and length_penalty > 0 else length
    if len(ended) == num_beams and (early_stopping is True or running[0][0] / reach**length_penalty <= ended[-1][0]):
      break
  return ended


def check(mine, expected):
  assert [beam.tokens.tolist() for beam in mine] == [list(text) for _, _, text in expected]
  np.testing.assert_allclose([beam.score for beam in mine], [score for score, _, _ in expected], atol=1e-4)
  np.testing.assert_allclose([beam.log_probability for beam in mine], [total for _, total, _ in expected], atol=1e-4)
  np.testing.assert_allclose([beam.log_probabilities.sum() for beam in mine], [row[1] for row in expected], atol=1e-4)


SLOW = ('learned', 'alibi, one key head', 'prefix', 'banded')


@pytest.mark.parametrize(
  'parts', [pytest.param(parts, marks=[pytest.mark.slow] if parts in SLOW else []) for parts in PARTS]
)
def test_a_ragged_batch_from_a_cache_is_each_text_read_whole(parts):
  config, stops = PARTS[parts], (12, 20)
  for prompt, mine in zip(PROMPTS, found(config, stop_ids=stops), strict=True):
    check(mine, reference(config, prompt, stops))
    for beam in mine:
      places = np.arange(len(beam.tokens))
      whole = full_forward(config)([*prompt, *beam.tokens], len(prompt))[len(prompt) - 1 : -1]
      np.testing.assert_allclose(beam.log_probabilities, whole[places, beam.tokens], atol=1e-4)
      assert beam.finish == ('stop' if beam.tokens[-1] in stops else 'length')


MANY = tuple(range(0, VOCABULARY, 2))
ALL_BUT_TWO = tuple(token for token in range(VOCABULARY) if token not in (3, 12))


@pytest.mark.parametrize('early_stopping', [False, True, 'never'])
@pytest.mark.parametrize('length_penalty', [-1.0, 0.0, 0.6, 1.0, 3.0])
def test_what_ends_a_search(length_penalty, early_stopping):
  how = {'length_penalty': length_penalty, 'early_stopping': early_stopping}
  for stop_ids, limit in [((), NEW), (MANY, NEW), (ALL_BUT_TWO, NEW - 2)]:
    for prompt, mine in zip(PROMPTS, found(ROTARY, stop_ids=stop_ids, max_new_tokens=limit, **how), strict=True):
      check(mine, reference(ROTARY, prompt, stop_ids, limit=limit, **how))


def test_other_prompts_of_a_batch_do_not_matter():
  """They are done at different times, and what is done does not change."""
  how = {'stop_ids': MANY, 'early_stopping': True, 'length_penalty': 2.0}
  together = found(ROTARY, **how)
  for prompt, mine in zip(PROMPTS, together, strict=True):
    alone = found(ROTARY, [prompt, PROMPTS[0], prompt], **how)[2]
    assert [beam.tokens.tolist() for beam in mine] == [beam.tokens.tolist() for beam in alone]
    np.testing.assert_allclose([beam.score for beam in mine], [beam.score for beam in alone], atol=1e-5)
  assert len({max(len(beam.tokens) for beam in mine) for mine in together}) > 1


@pytest.mark.parametrize('stop_ids', [(), MANY])
def test_one_beam_is_greedy(stop_ids):
  processors = (RepetitionPenalty(1.8),)
  how = {'max_new_tokens': NEW, 'stop_ids': stop_ids}
  beams = beam_search(*build(ROTARY), PROMPTS, num_beams=1, processors=processors, **how)
  greedy = generate(*build(ROTARY), PROMPTS, sampling=Sampling(0, processors=processors), **how)
  for (mine,), theirs in zip(beams, greedy, strict=True):
    assert mine.tokens.tolist() == theirs.tokens.tolist()
    assert mine.finish == theirs.finish
    np.testing.assert_allclose(mine.log_probabilities, theirs.log_probabilities, atol=1e-5)


def test_longer_texts_by_a_higher_penalty():
  lengths = [
    sum(len(beam.tokens) for beams in found(ROTARY, stop_ids=MANY, length_penalty=penalty) for beam in beams)
    for penalty in (-2.0, 0.0, 1.0, 3.0)
  ]
  assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


def test_nothing_compiles_twice_within_a_bucket():
  model, params = unstacked(*build(ROTARY))
  run = functools.partial(beam_search, model, params, num_beams=WIDTH)
  run(PROMPTS, max_new_tokens=5)
  before = steps.prefill._cache_size(), search._cache_size()
  run(([5] * 20, [6], [7, 8]), max_new_tokens=16, length_penalty=2, early_stopping='never', stop_ids=MANY)
  run(PROMPTS, max_new_tokens=1, early_stopping=True, num_return_sequences=2)
  assert (steps.prefill._cache_size(), search._cache_size()) == before


# ---- all texts there are -------------------------------------------------------------------------------------------

TINY = dataclasses.replace(PARTS['learned'], vocab_size=8)
DEEP, STOPS = 3, (0, 3, 4, 6, 7)
START = (2, 0, 1)
TEXTS = 5 + 3 * 5 + 3 * 3 * 8


@functools.cache
def every_text():
  """(log p, text) of all texts of at most DEEP tokens that end with a stop id or at DEEP."""
  ended = lambda text: len(text) == DEEP or (text and text[-1] in STOPS)
  texts, whole = [((), 0.0)], []
  while texts:
    text, total = texts.pop()
    if ended(text):
      whole.append((total, text))
    else:
      texts += [((*text, token), total + log_p) for token, log_p in enumerate(following(TINY, START, text))]
  return whole


@pytest.mark.parametrize('early_stopping', [False, True, 'never'])
@pytest.mark.parametrize('length_penalty', [-0.5, 0.0, 1.0, 2.5])
def test_a_beam_for_every_text_is_exact(length_penalty, early_stopping):
  scored = [(total / len(text) ** length_penalty, total, text) for total, text in every_text()]
  assert len(scored) == TEXTS
  mine, *_ = found(
    TINY, [START] * 3, max_new_tokens=DEEP, stop_ids=STOPS, length_penalty=length_penalty,
    early_stopping=early_stopping, num_beams=TEXTS, num_return_sequences=TEXTS,
  )  # fmt: skip
  # Texts of equal scores but for rounding may stand in either order.
  assert {tuple(beam.tokens.tolist()) for beam in mine} == {text for _, _, text in scored}
  scores = {text: score for score, _, text in scored}
  np.testing.assert_allclose([beam.score for beam in mine], [scores[tuple(b.tokens.tolist())] for b in mine], atol=1e-4)
  assert all(one.score >= other.score for one, other in itertools.pairwise(mine))
  assert tuple(mine[0].tokens.tolist()) == max(scored)[2]


def test_no_more_texts_than_there_are():
  run = functools.partial(found, TINY, [START] * 3, num_beams=TEXTS, num_return_sequences=TEXTS)
  for how in ({'max_new_tokens': 1, 'stop_ids': STOPS}, {'max_new_tokens': DEEP, 'stop_ids': range(8)}):
    mine, *_ = run(**how)
    assert sorted(beam.tokens.tolist() for beam in mine) == [[token] for token in range(8)]


# ---- by hand -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Table:
  """In place of a model: what follows a token depends on it alone, by these probabilities."""

  rows: tuple[tuple[float, ...], ...]

  def __call__(self, logits, seen):
    last = jnp.take_along_axis(seen.tokens, jnp.sum(seen.valid, axis=1, keepdims=True) - 1, axis=1)
    return jnp.log(jnp.asarray(self.rows))[last[:, 0]]


END, A, B, C, LOOP, FIRST, SECOND, THIRD = range(8)
ODDS = {
  A: {A: 0.4, C: 0.3, END: 0.3},
  B: {END: 0.9, C: 0.1},
  C: {END: 0.6, A: 0.4},
  LOOP: {LOOP: 0.99, END: 0.01},
  FIRST: {A: 0.5, B: 0.4, END: 0.1},
  SECOND: {END: 0.5, B: 0.3, LOOP: 0.2},
  THIRD: {END: 0.4, LOOP: 0.35, B: 0.25},
}
TABLE = Table(tuple(tuple(ODDS.get(row, {END: 1.0}).get(column, 0.0) for column in range(8)) for row in range(8)))
LAST = 12


def by_hand(prompts, **how):
  results = found(
    TINY, prompts, max_new_tokens=LAST, num_beams=2, num_return_sequences=2, stop_ids=[END], processors=(TABLE,), **how,
  )  # fmt: skip
  return [[(beam.tokens.tolist(), pytest.approx(beam.log_probability, abs=1e-4)) for beam in row] for row in results]


def test_by_hand():
  prompts = [[FIRST], [B, SECOND], [C, A, THIRD]]
  # A .5 and B .4 run (END .1 is third); B END .36 ends, AA .2 and AC .15 run; AC END .09 ends before AAA .08 can.
  first = [([B, END], math.log(0.36)), ([A, C, END], math.log(0.09))]
  # END .5 ends, B .3 and LOOP .2 run; B END .27 ends, LOOP LOOP .198: now, -0.81 a token, worse than both.
  second = [([B, END], math.log(0.27)), ([END], math.log(0.5))]
  # The same, but LOOP LOOP .3465 is better than both: the search goes on, unless it is to stop.
  third = [([B, END], math.log(0.225)), ([END], math.log(0.4))]
  looped = lambda p: [
    ([LOOP] * LAST, math.log(p * 0.99 ** (LAST - 1))),
    ([LOOP] * (LAST - 1) + [END], math.log(p * 0.99 ** (LAST - 2) * 0.01)),
  ]
  assert by_hand(prompts, early_stopping=True) == [first, second, third]
  assert by_hand(prompts) == [first, second, looped(0.35)]
  assert by_hand(prompts, early_stopping='never') == [first, looped(0.2), looped(0.35)]
  # ln .36 / 2^3 = -0.128, ln .09 / 3^3 = -0.089.
  assert by_hand(prompts, early_stopping=True, length_penalty=3)[0] == first[::-1]


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('wrong', 'message'), [
  ({'num_beams': 0}, r'^num_beams = 0 must be at least 1'),
  ({'num_return_sequences': 4}, r'^num_return_sequences = 4 must be from 1 to num_beams = 3'),
  ({'num_return_sequences': 0}, r'^num_return_sequences = 0 must be'),
  ({'early_stopping': 'always'}, r"^early_stopping = 'always' must be False, True or 'never'"),
  ({'length_penalty': math.inf}, r'^length_penalty = inf is out of range'),
  ({'length_penalty': math.nan}, r'^length_penalty = nan is out of range'),
  ({'prompts': []}, r'^prompts is empty'),
  ({'prompts': [[1], []]}, r'^prompts\[1\] is empty'),
  ({'prompts': [[31]]}, r'^prompts\[0\] has token 31'),
  ({'stop_ids': [99]}, r'^stop_ids has token 99'),
  ({'max_new_tokens': 0}, r'^max_new_tokens = 0 must be at least 1'),
  ({'prompts': [[1], [2] * 20]}, r'^prompts\[1\] of 20 tokens and max_new_tokens = 7 exceed the context of 24;'),
  ({'context': 5}, r'^prompts\[0\] of 17 .* context of 5'),
])  # fmt: skip
def test_bad_input_is_one_clear_line(wrong, message):
  with pytest.raises(UserError, match=message) as caught:
    found(PARTS['learned'], **wrong)
  assert '\n' not in str(caught.value)


def test_a_model_of_no_numbers_is_one_clear_line():
  model, params = build(ROTARY)
  with pytest.raises(UserError, match=r'^prompts\[0\] can not be followed by anything: the logits are not numbers'):
    beam_search(model, jax.tree.map(lambda x: x * np.nan, params), PROMPTS, max_new_tokens=NEW, num_beams=WIDTH)


def test_beams_are_plain_numbers():
  ((beam, *_), *_) = found(ROTARY)
  assert isinstance(beam.score, float) and isinstance(beam.tokens, np.ndarray)
  assert not isinstance(beam.tokens, jax.Array)
