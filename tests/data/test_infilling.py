"""Blank infilling: rows by hand and by brute force, and what is drawn against what GLM's papers say."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from gpt_jax.data import bpe
from gpt_jax.data.blanks import Blanks, draw_sentences, draw_words
from gpt_jax.data.infilling import Asked, Blanked, LeftToRight, blanked, side_by_side, text_context
from gpt_jax.data.marks import Marks, marks_of, sentence_ends
from gpt_jax.data.mixture import batches
from gpt_jax.data.rows import Rows, Stream
from gpt_jax.data.tokenizers import with_special
from gpt_jax.data.vocabularies import Bytes
from gpt_jax.models.masks import Causal, Prefix, SameSegment
from gpt_jax.types import UserError

MARKS = Marks(word=90, sentence=91, document=92, start=93, end=94)
M, S, E = 90, 93, 94
X1, X2, X3, X4, X5, X6 = range(1, 7)


def one(tokens, blanks, turns, mask=M, length=12):
  """The row of one text."""
  made = blanked(
    np.array([tokens]), np.array([len(tokens)]), np.array([blanks]), np.array([turns], float), np.array([mask]), MARKS,
    length,
  )  # fmt: skip
  return {key: made[key][0] for key in ('tokens', 'labels', 'weights')}, made['layout']


def test_the_example_of_the_paper():
  """Du et al. 2022, figure 2: of x1 to x6, [x3] and [x5, x6] are blanked, and the second is written first."""
  row, layout = one([X1, X2, X3, X4, X5, X6], [0, 0, 1, 0, 2, 2], [1, 0], length=10)
  assert row['tokens'][:10].tolist() == [X1, X2, M, X4, M, S, X5, X6, S, X3]
  targets = row['labels'][1:]
  assert [int(t) for t, w in zip(targets, row['weights'][1:], strict=True) if w] == [X5, X6, E, X3, E]
  assert row['weights'].tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
  # The paper counts places of the text from 1.
  assert (layout.position[0, :10] + 1).tolist() == [1, 2, 3, 4, 5, 5, 5, 5, 3, 3]
  assert layout.block[0, :10].tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 1, 2]
  seen = ((Causal() | Prefix()) & SameSegment())(layout, layout)[0, :10, :10]
  a, b = np.arange(10) < 5, np.tril(np.ones((10, 10), bool))
  assert (seen == (a[None] | b)).all()


def test_what_follows_the_last_blank_is_padding_that_nobody_sees():
  row, layout = one([X1, X2, X3], [0, 1, 0], [0], length=12)
  assert row['tokens'][:6].tolist() == [X1, M, X3, S, X2, 0]
  assert row['labels'][:6].tolist() == [X1, M, X3, S, X2, E]
  assert row['weights'].tolist() == [0] * 4 + [1, 1] + [0] * 7
  assert layout.segment[0].tolist() == [1] * 5 + [0] * 8


def reference(tokens, blanks, turns, mask, length):
  """The same by loops over lists."""
  spans = []
  part_a = []
  for place, (token, blank) in enumerate(zip(tokens, blanks, strict=True)):
    if blank == 0:
      part_a.append(token)
    elif place == 0 or blanks[place - 1] != blank:
      spans.append((len(part_a), [token]))
      part_a.append(mask)
    else:
      spans[-1][1].append(token)
  rows = [(token, i, 0, True, None) for i, token in enumerate(part_a)]
  for number in sorted(range(len(spans)), key=lambda number: turns[number]):
    place, span = spans[number]
    inputs, targets = [S, *span], [*span, E]
    rows += [(inputs[k], place, k + 1, False, targets[k]) for k in range(len(inputs))]
  rows += [(0, 0, 0, False, None)] * (length - len(rows))
  return rows


def test_rows_equal_brute_force_over_random_documents():
  generator = np.random.default_rng(0)
  how = Blanks(ratio=0.2)
  for number in range(1000):
    size = int(generator.integers(20, 60))
    tokens = generator.integers(1, 90, size)
    if number % 2:
      blanks = draw_words(how, generator.random((1, 2 * how.most(size) + size + 2)), size)[0]
    else:
      blanks = draw_sentences(how, generator.random((1, size + 1)), generator.random((1, size)) < 0.2)[0]
    turns = generator.random(how.most(size))
    length = size + 2 * how.most(size)
    row, layout = one(tokens, blanks, turns, mask=int(generator.choice([90, 91, 92])), length=length)
    mask = int(np.setdiff1d(row['tokens'], [*tokens, S, 0])[0]) if blanks.any() else M
    expected = reference(tokens.tolist(), blanks.tolist(), turns.tolist(), mask, length)
    assert row['tokens'][:length].tolist() == [token for token, *_ in expected]
    fields = [layout.position, layout.block, layout.prefix]
    assert [tuple(int(x[0, i]) for x in fields) for i in range(length)] == [
      (place, block, prefix) for _, place, block, prefix, _ in expected
    ]
    targets = [target for *_, target in expected]
    assert row['weights'][1:].tolist() == [target is not None for target in targets]
    assert all(target in (None, label) for target, label in zip(targets, row['labels'][1:], strict=True))


def test_spans_of_words_are_drawn_as_stated():
  """A million spans: lengths Poisson from 1 to 39, 15% of a text and little more, places uniform, none side by side."""
  how, size, texts = Blanks(), 256, 80_000
  draws = np.random.default_rng(1).random((texts, 2 * how.most(size) + size + 2))
  blanks = draw_words(how, draws, size)
  first = (blanks > 0) & (np.pad(blanks, ((0, 0), (1, 0)))[:, :-1] != blanks)
  row, _ = np.nonzero(blanks)
  lengths = np.bincount(np.unique(row * 1000 + blanks[blanks > 0], return_inverse=True)[1])
  assert len(lengths) > 1_000_000 and len(lengths) == first.sum()
  expected = stats.poisson(3).pmf(np.arange(1, 40))
  np.testing.assert_allclose(how.lengths, expected / expected.sum(), rtol=1e-9)
  kinds = 10  # longer ones together
  found = np.bincount(np.minimum(lengths, kinds), minlength=kinds + 1)[1:]
  wanted = np.array([*how.lengths[: kinds - 1], how.lengths[kinds - 1 :].sum()]) * len(lengths)
  # A text's number of spans depends on its lengths, so counts are not quite independent: nearly a chi-square.
  assert stats.chisquare(found, wanted).pvalue > 1e-4
  share = (blanks > 0).mean(axis=1)
  assert share.min() >= how.ratio and share.max() < how.ratio + 39 / size
  of = np.arange(1, 40)
  beyond = how.lengths @ (of * (of - 1)) / (2 * how.lengths @ of)  # of the last span, by renewal theory
  assert share.mean() * size == pytest.approx(np.ceil(how.ratio * size) + beyond, abs=0.03)
  ends = (blanks > 0) & (np.pad(blanks, ((0, 0), (0, 1)))[:, 1:] != blanks)
  assert not (ends[:, :-1] & first[:, 1:]).any()
  # By symmetry every place is blanked as often as its mirror image; away from the ends, all alike.
  often = (blanks > 0).mean(axis=0)
  error = np.sqrt(often.mean() / texts)
  assert np.abs(often - often[::-1]).max() < 6 * error
  assert np.abs(often[20:-20] - often[20:-20].mean()).max() < 6 * error
  # The last length drawn is longer than others, and must not lie behind others.
  which = np.where(first, blanks, 0).max(axis=1)
  last = np.array([(blanks == which[:, None]).sum(axis=1).mean(), (blanks == 1).sum(axis=1).mean()])
  assert abs(last[0] - last[1]) < 0.05


def test_each_text_may_have_a_ratio_of_its_own():
  """Uniform, by one sort of blank as by the other; one blank at least."""
  size, texts = 400, 4000
  for least, ratio in ((0.0, 0.4), (0.2, 0.3), (0.1, 0.1)):
    how = Blanks(ratio=ratio, least_ratio=least)
    generator = np.random.default_rng(4)
    draws = generator.random((texts, 2 * how.most(size) + size + 2))
    ends = np.broadcast_to(np.arange(size) % 4 == 3, (texts, size))
    for blanks, beyond in ((draw_words(how, draws, size), 4), (draw_sentences(how, draws[:, : size + 1], ends), 4)):
      share = (blanks > 0).mean(axis=1)
      assert share.min() > 0 and share.min() >= least and share.max() < ratio + 39 / size
      np.testing.assert_allclose(
        np.quantile(share, [0.25, 0.5, 0.75]),
        np.quantile(least + (ratio - least) * draws[:, 0], [0.25, 0.5, 0.75]) + beyond / 2 / size,
        atol=0.006,
      )


def test_all_ways_to_place_two_spans_are_alike():
  how, size = Blanks(ratio=0.3, mean_length=2.0, longest=2), 6
  blanks = draw_words(how, np.random.default_rng(2).random((60_000, 2 * how.most(size) + size + 2)), size)
  found = {}
  for row, count in zip(*np.unique(blanks, axis=0, return_counts=True), strict=True):
    lengths = tuple(int((row == n).sum()) for n in range(1, row.max() + 1))
    found.setdefault(lengths, []).append(count)
  assert set(found) == {(1, 1), (1, 2), (2, 1), (2,)}
  assert {lengths: len(counts) for lengths, counts in found.items()} == {(1, 1): 10, (1, 2): 6, (2, 1): 6, (2,): 5}
  for counts in found.values():
    assert stats.chisquare(counts).pvalue > 1e-4
  assert stats.binomtest(int(sum(found[1, 2])), int(sum(found[1, 2]) + sum(found[2, 1]))).pvalue > 1e-4


def test_whole_sentences_are_blanked_until_there_are_enough():
  #                0  1  2  3  4  5  6  7  8  9 10 11
  ends = np.array([[0, 0, 1, 0, 0, 1, 0, 1, 0, 1, 1, 0]], bool)
  sentences = {frozenset((3, 4, 5)), frozenset((6, 7)), frozenset((8, 9, 10))}  # not the first nor the last
  generator, seen = np.random.default_rng(3), set()
  for _ in range(200):
    blanks = draw_sentences(Blanks(ratio=0.25), generator.random((1, 13)), ends)[0]
    spans = [frozenset(np.nonzero(blanks == n)[0].tolist()) for n in range(1, blanks.max() + 1)]
    assert set(spans) <= sentences and sum(map(len, spans)) >= 3
    assert sum(map(len, spans)) - max(map(len, spans)) < 3  # none too many
    seen.add(tuple(spans))
  assert len(seen) >= 4
  assert not draw_sentences(Blanks(), generator.random((1, 13)), ends & (np.arange(12) < 3)).any()


def stream(size=4000, seed=0):
  return Stream('a', np.random.default_rng(seed).integers(1, 80, size).astype(np.uint16), np.array([0]), size)


ENDS = np.arange(100) % 10 == 0


def made(how, context=64, seed=5, size=4000):
  return Blanked(Rows(stream(size), text_context(context)), how, MARKS, ENDS, context, seed)


def test_rows_are_a_function_of_seed_step_and_row():
  how = Blanks()
  rows = made(how)
  same = lambda a, b: all(np.array_equal(a[key], b[key]) for key in ('tokens', 'labels', 'weights'))
  batch = rows.batch(np.arange(6), 7)
  assert same(batch, made(how).batch(np.arange(6), 7))
  assert not same(batch, rows.batch(np.arange(6), 8)) and not same(batch, made(how, seed=6).batch(np.arange(6), 7))
  alone = [rows.batch(np.array([index]), 7) for index in (4, 1)]
  assert same(alone[0], {key: batch[key][4:5] for key in batch if key != 'layout'})
  assert same(alone[1], {key: batch[key][1:2] for key in batch if key != 'layout'})
  source = batches([rows], [1.0], 4, seed=0)
  assert same(source(3), source(3)) and not same(source(3), source(4))
  halves = [batches([rows], [1.0], 4, seed=0, host=host, hosts=2)(3) for host in range(2)]
  keys = ('tokens', 'labels', 'weights')
  assert same(source(3), {key: np.concatenate([half[key] for half in halves]) for key in keys})


def restored(row, layout, window):
  """The text of a window: what it shows, with what stood in its blanks put back."""
  of = layout.segment == window
  tokens, position, block, prefix = (x[of] for x in (row, layout.position, layout.block, layout.prefix))
  spans = {}
  for token, place, number in zip(tokens[~prefix], position[~prefix], block[~prefix], strict=True):
    spans.setdefault(int(place), []).extend([int(token)] if number > 1 else [])
  text = []
  for place, token in enumerate(tokens[prefix].tolist()):
    text += spans[place] if token in (90, 91, 92) else [token]
  return text


@pytest.mark.parametrize('windows', [1, 2])
def test_every_kind_of_row_restores_its_text(windows):
  how = Blanks(windows=windows)
  rows = made(how, context=128)
  batch = rows.batch(np.arange(30), 1)
  layout = batch['layout']
  pieces = rows.rows.batch(np.arange(30))['tokens']
  kinds = set()
  for row in range(30):
    fields = ('position', 'block', 'segment', 'prefix')
    one = dataclasses.replace(layout, **{name: getattr(layout, name)[row] for name in fields})
    masks = {int(token) for token in batch['tokens'][row] if token in (90, 91, 92)}
    kinds |= masks
    whole = ' '.join(map(str, pieces[row]))
    windows_found = int(one.segment.max())
    assert windows_found == (1 if masks == {92} else windows)
    for window in range(1, windows_found + 1):
      assert f' {" ".join(map(str, restored(batch["tokens"][row], one, window)))} ' in f' {whole} '
  assert kinds == {90, 91, 92}


def test_windows_side_by_side_predict_the_same():
  how = Blanks(sentence=0.0, document=0.0)
  draws = np.random.default_rng(0).random((4, 2 * how.most(26) + 28))
  tokens = np.random.default_rng(1).integers(1, 80, (4, 26))
  turns = np.random.default_rng(2).random((4, how.most(26)))
  for length in (how.most(26) * 2 + 26, 26 + 2 * int(draw_words(how, draws, 26).max())):  # the second has no room left
    each = blanked(tokens, np.full(4, 26), draw_words(how, draws, 26), turns, np.full(4, M), MARKS, length)
    rows = side_by_side(each, 2, 2 * length + 3)
    pairs = lambda batch: [
      (int(token), int(label))
      for tokens, labels, weights in zip(batch['tokens'], batch['labels'], batch['weights'], strict=True)
      for token, label, weight in zip(tokens[:-1], labels[1:], weights[1:], strict=True)
      if weight
    ]
    assert pairs(rows) == pairs(each) and len(pairs(rows)) > 10
    assert rows['tokens'].shape == (2, 2 * length + 4)
    assert rows['layout'].segment.max() == 2


def test_padding_rows_predict_nothing():
  batch = made(Blanks()).batch(np.array([3, -1, -1, -1, -1]))
  assert batch['weights'][0].sum() > 0 and not batch['weights'][1:].any()
  assert not batch['layout'].segment[1:].any()


def test_the_rest_of_a_text_is_uniform_in_length_and_what_ends_with_a_row_is_no_end():
  how = Blanks(word=0, sentence=0, document=1, least_document=0.5)
  batch = made(how, context=66, size=60_000).batch(np.arange(900))
  hidden = batch['weights'].sum(axis=1)
  assert hidden.min() >= 32 and hidden.max() == 64
  assert stats.kstest((hidden - 32 + np.random.default_rng(0).random(900) - 0.5) / 32, 'uniform').pvalue > 1e-3
  assert not (batch['labels'] * batch['weights'] == E).any()
  assert (batch['layout'].segment[:, :-1] == 1).all()  # rows are full
  placed = made(dataclasses.replace(how, running=True), context=66).batch(np.arange(3))['layout']
  assert (placed.position[:, :-1] == np.arange(66)).all() and not placed.block.any()


def test_a_text_all_in_one_blank_predicts_what_rows_predict():
  rows = Rows(stream(100), 20, drop_remainder=False, stride=15)
  plain, whole = (source.batch(np.array([0, 3, -1, 5])) for source in (rows, LeftToRight(rows, MARKS)))
  assert whole['tokens'].shape[1] == LeftToRight(rows, MARKS).context + 1 == 23
  assert (whole['tokens'][:3:2, :2] == [[92, S], [0, 0]]).all()
  assert (whole['tokens'][:2, 2:] == plain['tokens'][:2]).all() and (whole['weights'][:, 2:] == plain['weights']).all()
  layout = whole['layout']
  assert layout.prefix[0].tolist() == [True] + [False] * 22 and not layout.position[0].any()
  assert layout.block[0].tolist() == list(range(23))
  assert layout.segment.any(axis=1).tolist() == [True, True, False, True]


def test_answers_stand_in_a_blank_behind_their_prompts():
  texts = [
    ([1, 2, 3, 4, 5], [False, False, False, True, True]),
    ([1, 2, 3, 4, 5, 6], [False, True, False, False, True, True]),  # of a conversation, the last answer
    ([1, 2], [False, False]),
    (list(range(1, 20)), [False] * 10 + [True] * 9),
  ]
  rows = Asked(texts, MARKS, 12)
  assert len(rows) == 2 and rows.dropped == 2
  batch = rows.batch(np.array([0, 1, -1]))
  assert batch['tokens'][0].tolist() == [1, 2, 3, 92, S, 4, 5, 0, 0, 0, 0, 0, 0]
  assert batch['labels'][0, 5:8].tolist() == [4, 5, E] and batch['weights'][0].sum() == 3
  assert batch['tokens'][1, :8].tolist() == [1, 2, 3, 4, 92, S, 5, 6]
  assert not batch['layout'].segment[2].any()
  with pytest.raises(UserError, match='no prompt has an answer that fits with it in 2 tokens'):
    Asked(texts, MARKS, 4)


def test_marks_are_tokens_of_the_vocabulary():
  small = bpe.train(['Where is it? There it is. 你在哪裏？在此。'] * 3, 300)
  assert marks_of(small) is None and marks_of(Bytes()) is None
  wider = with_special(small, ('[MASK]', '[sMASK]', '[gMASK]', '<|startofpiece|>', '<|endofpiece|>'))
  marks = marks_of(wider)
  assert marks is not None and {*dataclasses.astuple(marks)} == {*range(small.vocab_size, small.vocab_size + 5)}
  assert wider.vocab_size == small.vocab_size + 5
  assert wider.encode('[MASK]').tolist() == small.encode('[MASK]').tolist()  # in a text it is text
  assert wider.encode_special('a[gMASK]').tolist() == [*small.encode('a').tolist(), marks.document]
  ends = sentence_ends(wider)
  ids = wider.encode('There it is. 在此。')
  assert ends[ids].sum() >= 1 and not ends[wider.encode('There')].any() and ends[wider.end_of_text]


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'word': -1.0}, 'config.infilling.word = -1.0 must be at least 0'),
    ({'word': 0, 'sentence': 0, 'document': 0}, 'config.infilling: one of word, sentence, document must be above 0'),
    ({'ratio': 0.9}, 'config.infilling.ratio = 0.9 must be above 0 and at most 0.5'),
    ({'least_ratio': 0.2}, 'config.infilling.least_ratio = 0.2 must be from 0 to ratio, 0.15'),
    ({'windows': 0}, 'config.infilling.windows = 0 must be above 0'),
  ],
)
def test_what_can_not_be_is_refused(fields, message):
  with pytest.raises(UserError, match=message.replace('.', '[.]')):
    Blanks(**fields)


def test_rows_too_short_for_a_blank_are_refused():
  with pytest.raises(UserError, match='16, of 2 windows, is too short for blanks'):
    made(Blanks(windows=2), context=16)
