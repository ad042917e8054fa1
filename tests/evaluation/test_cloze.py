"""Blanks as questions, against greedy decoding and sums taken one by one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.data.infilling import blanked
from gpt_jax.data.marks import Marks
from gpt_jax.decoding.infilling import fill
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.evaluation.cloze import choice_logprobs, filling
from gpt_jax.models.attention import Dense
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.layers import Mlp
from gpt_jax.models.masks import Causal, Prefix
from gpt_jax.models.positions import Learned2D
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.types import UserError

MARKS = Marks(word=26, sentence=27, document=28, start=29, end=30)
CONFIG = TransformerConfig(
  vocab_size=31, num_layers=2, model_dim=32, num_heads=4, num_kv_heads=4, mlp=Mlp(hidden=48), stacked=False,
  positions=Learned2D(32), attention=(Dense(Causal() | Prefix()),),
)  # fmt: skip
MODEL = LanguageModel(CONFIG)


@pytest.fixture(scope='module')
def params():
  drawn = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
  leaves, tree = jax.tree.flatten(drawn)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  return tree.unflatten([x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)])


def rows(texts, spans):
  """One blank in each text, from and up to a place."""
  text = np.array(texts)
  blanks = np.array([[int(a <= place < b) for place in range(text.shape[1])] for a, b in spans])
  counts, masks = np.full(len(text), text.shape[1]), np.full(len(text), MARKS.word)
  return blanked(text, counts, blanks, np.zeros((len(text), 1)), masks, MARKS, 16)


def test_what_greedy_decoding_writes_is_an_exact_match_and_anything_else_is_none(params):
  question = [3, 26, 5, 6, 7]
  (found,) = fill(MODEL, params, [question], MARKS, max_new_tokens=3, sampling=Sampling(temperature=0))
  written = found.blanks[1].tokens.tolist()
  assert 30 not in written, 'take another key: this test wants three tokens'
  wrong = [*written[:2], (written[2] + 1) % 26]
  batch = rows([[3, *span, 5, 6, 7] for span in (written, wrong)], [(1, 4)] * 2)
  measured = filling(MODEL, params, [batch], MARKS.end)
  assert measured.exact_match == 0.5 and measured.blanks == 2 and measured.accuracy == pytest.approx(5 / 6)
  assert measured.exact_match_with_end <= 0.5
  each = [jax.tree.map(lambda x, row=row: x[row : row + 1], batch) for row in (0, 1)]
  alone = filling(MODEL, params, each, MARKS.end)
  assert dataclasses.asdict(alone) == pytest.approx(dataclasses.asdict(measured))
  with_end = filling(MODEL, params, [batch])  # the end is a token like others
  assert with_end.accuracy != measured.accuracy or with_end.loss != measured.loss


def test_told_how_long_a_blank_is_a_model_does_not_pay_for_lengths(params):
  texts = [[3, 9, 4, 8, 5, 6, 7], [11, 12, 13, 14, 15, 16, 17], [1, 2, 3, 4, 5, 6, 7]]
  batch = rows(texts, [(1, 4), (2, 3), (4, 5)])
  measured = filling(MODEL, params, [batch], MARKS.end)
  tokens, layout = jax.tree.map(lambda x: jnp.asarray(x[:, :-1]), (batch['tokens'], batch['layout']))
  logprobs = np.array(jax.nn.log_softmax(MODEL.apply(params, tokens, layout)[0]), np.float64)
  of_text, of_ends = [], []
  for row, at in zip(*np.nonzero(batch['weights'][:, 1:]), strict=True):
    label = batch['labels'][row, at + 1]
    (of_ends if label == MARKS.end else of_text).append(-logprobs[row, at, label])
  assert (len(of_text), len(of_ends)) == (5, 3)
  assert measured.loss == pytest.approx(np.mean(of_text), abs=1e-5)
  # Spans of 3, 1 and 1 tokens: -log p(3) and -log p(1) are log 3 and log 3/2 by how often they are.
  given = np.sum(of_text) + np.sum(of_ends) - np.log(3) - 2 * np.log(1.5)
  assert measured.loss_given_length == pytest.approx(given / 5, abs=1e-5)
  assert filling(MODEL, params, [batch]).loss_given_length == filling(MODEL, params, [batch]).loss


def test_told_how_long_a_blank_is_greedy_decoding_goes_on_to_there(params):
  """A span of the likeliest tokens but the end, also where the end is likelier."""
  unending = np.arange(31) != MARKS.end
  ended = 0
  louder = lambda x: x.at[MARKS.end].multiply(-3) if x.shape[0] == 31 else x  # its logits, below others, rise
  params = jax.tree.map(louder, params)
  for text in np.random.default_rng(0).integers(0, 26, (12, 7)):
    span = []
    for length in (1, 2, 3):
      batch = rows([[*text[:3], *span, 0, *text[3:]]], [(3, 3 + length)])
      tokens, layout = jax.tree.map(lambda x: jnp.asarray(x[:, :-1]), (batch['tokens'], batch['layout']))
      logits = np.array(MODEL.apply(params, tokens, layout)[0])[0, np.flatnonzero(batch['weights'][0])[-2] - 1]
      span.append(int(np.where(unending, logits, -np.inf).argmax()))
      ended += int(logits.argmax() == MARKS.end)
    right, wrong = span, [*span[:2], (span[2] + 1) % 26]
    batch = rows([[*text[:3], *of, *text[3:]] for of in (right, wrong)], [(3, 6)] * 2)
    assert filling(MODEL, params, [batch], MARKS.end).exact_match == 0.5
  assert 0 < ended < 36, 'somewhere, not everywhere, the end must be the likeliest'


def test_options_weigh_what_their_tokens_and_the_end_do(params):
  questions, options = [[3, 26, 5], [26, 8, 9, 10]], [[11], [12, 13], [14, 15, 16]]
  found = choice_logprobs(MODEL, params, questions, [options, options[1:]], MARKS, batch_size=2)
  assert [len(of) for of in found] == [3, 2]
  for row, (question, place) in enumerate(zip(questions, (1, 0), strict=True)):
    for column, option in enumerate(options[row:]):
      text = [*question[:place], *option, *question[place + 1 :]]
      batch = rows([text], [(place, place + len(option))])
      tokens, layout = jax.tree.map(lambda x: jnp.asarray(x[:, :-1]), (batch['tokens'], batch['layout']))
      logits = MODEL.apply(params, tokens, layout)[0]
      logprobs = jax.nn.log_softmax(logits)[0]
      counted = np.flatnonzero(batch['weights'][0, 1:])
      assert len(counted) == len(option) + 1
      want = sum(float(logprobs[at, batch['labels'][0, at + 1]]) for at in counted)
      assert found[row][column] == pytest.approx(want, abs=1e-4)


def test_what_is_no_question_is_refused(params):
  with pytest.raises(UserError, match=r'questions\[0\] has no blank'):
    choice_logprobs(MODEL, params, [[1, 2]], [[[3]]], MARKS)
  with pytest.raises(UserError, match=r'options\[0\]: give at least one, none of them empty'):
    choice_logprobs(MODEL, params, [[26]], [[[]]], MARKS)
