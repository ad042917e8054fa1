"""A text in turns is written as if it were read anew each time, and only what is new is read."""

import dataclasses

import numpy as np
import pytest

from gpt_jax.decoding import conversation as module
from gpt_jax.decoding.conversation import Conversation
from gpt_jax.models.positions import Learned
from gpt_jax.types import UserError
from tests.decoding.test_generate import GREEDY, PARTS, PROMPTS, VOCABULARY, build, greedy_by_brute_force

LONGER = {**PARTS, 'learned': dataclasses.replace(PARTS['learned'], positions=Learned(96))}


@pytest.fixture
def reads(monkeypatch):
  """How many tokens each turn read."""
  seen = []
  write = module.write

  def counted(*args):
    seen.append(int(args[7][0]))
    return write(*args)

  monkeypatch.setattr(module, 'write', counted)
  monkeypatch.setattr(module, 'LEAST_ROOM', 16)
  return seen


def written(conversation, text, number, **more) -> list[int]:
  pieces = list(conversation.stream(text, max_new_tokens=number, sampling=GREEDY, stride=4, **more))
  return np.concatenate([piece.tokens for piece in pieces]).tolist()


anew = greedy_by_brute_force


SLOW = ('learned', 'alibi, one key head', 'banded', 'prefix')


@pytest.mark.parametrize(
  'parts', [pytest.param(parts, marks=[pytest.mark.slow] if parts in SLOW else []) for parts in LONGER]
)
def test_turns_are_written_as_if_read_anew(parts, reads):
  config = LONGER[parts]
  conversation, text = Conversation(*build(config)), list(PROMPTS[0])
  for number, said in ((5, [1, 2, 3]), (9, [7] * 20), (1, [4]), (12, [])):
    added = written(conversation, text, number)
    assert added == anew(config, text, number)
    text += [*added, *said]
  assert len(text) == 60  # the room doubled, twice
  # In each turn the last token written and what was said; with a prefix, all of it, as it sees what comes after.
  assert reads == ([9, 17, 46, 48] if parts == 'prefix' else [9, 4, 21, 2])


@pytest.mark.parametrize(('parts', 'read'), [('rotary, grouped queries', [6, 2, 1, 1, 1]), ('banded', [6, 6, 3, 3, 1])])
def test_a_text_that_was_changed_is_read_from_the_change_on(parts, read, reads):
  """From its beginning where a band has forgotten what it would have to see again."""
  config = LONGER[parts]
  conversation, text = Conversation(*build(config)), [3, 1, 4, 1, 5, 9]
  text += written(conversation, text, 8)
  for changed in ([*text[:4], 20, 21], text[:3], text[:3], [8]):
    assert written(conversation, changed, 6) == anew(config, changed, 6)
  assert reads == read


def test_what_was_drawn_beyond_a_stop_string_is_forgotten(reads):
  config = LONGER['banded']
  conversation, text = Conversation(*build(config)), list(PROMPTS[2])
  free = anew(config, text, 9)
  letter = lambda ids: ''.join(chr(65 + i) for i in ids)
  added = written(conversation, text, 9, stop=[letter(free[:3])], decode=letter)
  assert added == free[:3]
  text += [*added, 2, 2]
  assert written(conversation, text, 6) == anew(config, text, 6)
  assert reads == [5, 3]


def test_left_early_it_reads_all_again(reads):
  config = LONGER['learned']
  conversation, text = Conversation(*build(config)), list(PROMPTS[0])
  next(conversation.stream(text, max_new_tokens=9, sampling=GREEDY))
  assert written(conversation, text, 5) == anew(config, text, 5)
  assert reads == [9, 9]


def test_a_full_context_is_refused_and_nothing_is_lost(reads):
  conversation, text = Conversation(*build(LONGER['learned']), context=20), [1] * 10
  text += written(conversation, text, 5)
  with pytest.raises(UserError, match='exceed the context of 20; shorten'):
    conversation.stream([*text, 1, 1], max_new_tokens=5)
  assert len(written(conversation, [*text, 1, 1], 3)) == 3
  assert reads == [10, 3]


def test_seeds_draw_apart(reads):
  conversation = Conversation(*build(LONGER['banded']))
  run = lambda seed: np.concatenate(
    [piece.tokens for piece in conversation.stream([1, 2], max_new_tokens=12, seed=seed)]
  ).tolist()
  assert run(0) == run(0) != run(1)
  assert max(run(2)) < VOCABULARY
