"""Blanks filled from a cache: as a full forward over rows that data makes, blank after blank."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.data.infilling import blanked, running
from gpt_jax.data.marks import Marks
from gpt_jax.decoding.drafts import ModelDraft, PromptLookup
from gpt_jax.decoding.infilling import fill, opened
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.decoding.steps import unstacked
from gpt_jax.models.attention import Dense
from gpt_jax.models.masks import Causal, Prefix
from gpt_jax.models.positions import Learned2D, Rotary, Rotary2D
from gpt_jax.types import UserError
from tests.decoding.test_generate import base, build

MARKS = Marks(word=26, sentence=27, document=28, start=29, end=30)
GREEDY = Sampling(temperature=0)
both_ways = dataclasses.replace(base, attention=(Dense(Causal() | Prefix()),))
MODELS = {
  'learned': dataclasses.replace(both_ways, positions=Learned2D(40)),
  'rotary': dataclasses.replace(both_ways, rotation=Rotary2D()),
  'running': dataclasses.replace(both_ways, rotation=Rotary()),
}
TEXTS = ([3, 26, 1, 4, 26, 9, 2], [5, 6, 27, 7], [8, 9, 10, 28], [26, 26, 11, 28])
NEW = 4


def logits(config, placed_row, layout):
  model, params = build(config)
  return np.asarray(jax.jit(model.apply)(params, placed_row, layout)[0])


def by_brute_force(config, text, runs):
  """Of each blank what is likeliest, a full forward for each token over a row that `data.infilling` lays out.

  Blanks to come are laid out too, with nothing in them but the mark they begin with: nobody before them sees that.
  """
  places = [place for place, token in enumerate(text) if token in (26, 27, 28)]
  spans = [[] for _ in places]
  for number in range(len(places)):
    while len(spans[number]) < NEW and 30 not in spans[number]:
      # The text with as many tokens in its blanks as are known, and one that is to be found.
      guess = [[*spans[n], 0] if n == number else spans[n] or [0] for n in range(len(places))]
      guess = [[token for token in span if token != 30] or [0] for span in guess]
      tokens, blanks, filled = [], [], iter(enumerate(guess, 1))
      for token in text:
        n, span = next(filled) if token in (26, 27, 28) else (0, [token])
        tokens += span
        blanks += [n] * len(span)
      made = blanked(
        np.array([tokens]), np.array([len(tokens)]), np.array([blanks]), np.arange(len(places))[None] * 1.0,
        np.array([0]), MARKS, 40,
      )  # fmt: skip
      row, layout = made['tokens'], made['layout']
      row[0, : len(text)] = text
      layout = running(layout) if runs else layout
      at = len(text) + sum(len([t for t in s if t != 30] or [0]) + 1 for s in guess[:number]) + len(spans[number])
      spans[number].append(int(logits(config, jnp.asarray(row), layout)[0, at].argmax()))
  return spans


@pytest.mark.parametrize('name', ['learned', pytest.param('rotary', marks=pytest.mark.slow)])
def test_blanks_are_filled_as_a_full_forward_would(name):
  config = MODELS[name]
  filled = fill(*build(config), TEXTS, MARKS, max_new_tokens=NEW, sampling=GREEDY)
  for text, found in zip(TEXTS, filled, strict=True):
    assert [c.tokens.tolist() for c in found.blanks.values()] == by_brute_force(config, text, False)
    assert list(found.blanks) == [place for place, token in enumerate(text) if token in (26, 27, 28)]
  alone = [fill(*build(config), [text], MARKS, max_new_tokens=NEW, sampling=GREEDY)[0].whole for text in TEXTS]
  assert alone == [found.whole for found in filled]


def test_the_rest_of_a_text_runs_on_in_a_model_that_knows_no_blanks():
  config, text = MODELS['running'], TEXTS[2]
  (found,) = fill(*build(config), [text], MARKS, max_new_tokens=NEW, sampling=GREEDY, running=True)
  assert [found.blanks[3].tokens.tolist()] == by_brute_force(config, text, True)


def test_a_text_is_laid_out_as_training_lays_it_out():
  text = np.array(TEXTS[0])
  placed = opened(text, 4, MARKS, {1: [15, 16]})
  assert placed.tokens.tolist() == [*text, 29, 15, 16, 29]
  made = blanked(
    np.array([[3, 15, 16, 1, 4, 17, 9, 2]]), np.array([8]), np.array([[0, 1, 1, 0, 0, 2, 0, 0]]),
    np.array([[0.0, 1.0]]), np.array([26]), MARKS, 12,
  )  # fmt: skip
  size = len(placed)
  assert placed.tokens.tolist() == made['tokens'][0, :size].tolist()
  for name in ('position', 'block', 'prefix'):
    assert getattr(placed, name).tolist() == getattr(made['layout'], name)[0, :size].tolist()
  assert opened(text, 1, MARKS, running=True).position.tolist() == [*range(7), 1]
  assert opened(np.array(TEXTS[2]), 3, MARKS, running=True).position.tolist() == [0, 1, 2, 3, 4]


def test_blanks_are_put_back_without_their_marks():
  filled = fill(*build(MODELS['learned']), TEXTS, MARKS, max_new_tokens=NEW, sampling=Sampling(), seed=3)
  for text, found in zip(TEXTS, filled, strict=True):
    expected, written = [], iter(found.blanks.values())
    for token in text:
      expected += next(written).tokens.tolist() if token in (26, 27, 28) else [token]
    assert found.whole == [token for token in expected if token != 30]


@pytest.mark.parametrize('draft', ['lookup', 'model'])
def test_drafts_fill_the_same(draft):
  config = MODELS['learned']
  model, params = build(config)
  small = unstacked(*build(config))
  given = PromptLookup(3) if draft == 'lookup' else ModelDraft(small[1], small[0], 3)
  plain, drafted = (
    fill(model, params, TEXTS, MARKS, max_new_tokens=NEW, sampling=GREEDY, **more) for more in ({}, {'draft': given})
  )
  assert [one.whole for one in plain] == [one.whole for one in drafted]
  if draft == 'model':  # which stands where the model does, and so is never wrong
    completions = [completion for one in drafted for completion in one.blanks.values()]
    assert all(completion.kept == completion.tried for completion in completions)
    assert sum(completion.kept for completion in completions) > 10


def test_what_is_drawn_does_not_depend_on_what_stands_beside_it():
  built = build(MODELS['learned'])
  how = {'max_new_tokens': NEW, 'sampling': Sampling(), 'seed': 7}
  together = [found.whole for found in fill(*built, TEXTS, MARKS, **how)]
  apart = [fill(*built, TEXTS[row : row + 1], MARKS, **how, first_row=row)[0].whole for row in range(len(TEXTS))]
  assert together == apart
  assert together != [found.whole for found in fill(*built, TEXTS, MARKS, **{**how, 'seed': 8})]


def test_what_ends_a_text_is_no_part_of_it():
  built, greedy = build(MODELS['learned']), Sampling(temperature=0)
  (found,) = fill(*built, TEXTS[2:3], MARKS, max_new_tokens=NEW, sampling=greedy)
  stop = int(found.blanks[3].tokens[1])
  (ended,) = fill(*built, TEXTS[2:3], MARKS, max_new_tokens=NEW, sampling=greedy, stop_ids=(stop,))
  assert ended.blanks[3].tokens[-1] == stop and stop not in ended.span(3) and ended.blanks[3].finish == 'stop'


def test_a_text_without_a_blank_is_refused():
  with pytest.raises(UserError, match=r'texts\[1\] has no blank: write \[MASK\]'):
    fill(*build(MODELS['learned']), [TEXTS[0], [1, 2]], MARKS, max_new_tokens=NEW)
