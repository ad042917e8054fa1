"""Texts of which a part is to be said, as rows."""

import jax
import numpy as np
import pytest

from gpt_jax.data.answers import Answers, answered
from gpt_jax.data.mixture import batches
from gpt_jax.data.rows import Dataset, in_order
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.parts import from_config
from gpt_jax.objectives.likelihood import next_token_loss
from gpt_jax.types import UserError

PAIRS = [answered([5, 6], [7, 8]), answered([1], [2, 3, 4, 5, 6]), answered([9, 9, 9], [])]


def test_rows_by_hand():
  rows = Answers(PAIRS, 4)
  assert isinstance(rows, Dataset) and len(rows) == 2 and rows.cut == rows.dropped == 1 and rows.predicted == 6
  batch = rows.batch(np.array([0, 1, -1]))
  np.testing.assert_array_equal(batch['tokens'], [[5, 6, 7, 8, 0], [1, 2, 3, 4, 5], [0] * 5])
  np.testing.assert_array_equal(batch['weights'], [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1], [0] * 5])
  layout = batch['layout']
  np.testing.assert_array_equal(layout.segment, [[1, 1, 1, 1, 0], [1] * 5, [0] * 5])
  np.testing.assert_array_equal(layout.position[0], [0, 1, 2, 3, 0])
  np.testing.assert_array_equal(layout.order[2], range(5))


def test_packed_rows_by_hand():
  """Texts of 4, 3, 2 and 1 and 3 tokens in rows of 6: the first and third fit together, then the others."""
  texts = [
    answered([1], [2, 3, 4]),
    answered([], [5, 6, 7]),
    answered([8], [9]),
    answered([3], []),
    answered([4], [4, 4]),
  ]
  rows = Answers(texts, 5, packed=True)
  assert len(rows) == 2 and rows.dropped == 1 and rows.cut == 0
  batch = rows.batch(np.arange(2))
  np.testing.assert_array_equal(batch['tokens'], [[1, 2, 3, 4, 8, 9], [5, 6, 7, 4, 4, 4]])
  np.testing.assert_array_equal(batch['weights'], [[0, 1, 1, 1, 0, 1], [0, 1, 1, 0, 1, 1]])
  np.testing.assert_array_equal(batch['layout'].segment, [[1, 1, 1, 1, 2, 2], [1, 1, 1, 2, 2, 2]])
  np.testing.assert_array_equal(batch['layout'].position, [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 1, 2]])


def test_packed_texts_teach_what_separate_ones_do():
  """The same loss and gradient, to rounding, of a model with every kind of position that could leak."""
  rng = np.random.default_rng(0)
  texts = [
    answered(rng.integers(0, 17, n).tolist(), rng.integers(0, 17, m).tolist()) for n, m in rng.integers(1, 7, (20, 2))
  ]
  small = {'num_layers': 2, 'model_dim': 16, 'num_heads': 2, 'num_kv_heads': 2, 'mlp': 'swiglu(24)', 'vocab_size': 17}
  model = LanguageModel(from_config({'family': 'llama2_7b', **small}))
  params = jax.jit(model.init)(jax.random.key(1), jax.numpy.zeros((1, 1), int))
  loss_fn = next_token_loss(model)

  def of(rows: Answers):
    batch = jax.tree.map(jax.numpy.asarray, rows.batch(np.arange(len(rows))))
    value = lambda params: loss_fn(params, batch, jax.random.key(0))[0].value
    return jax.jit(jax.value_and_grad(value))(params)

  separate, packed = Answers(texts, 24), Answers(texts, 24, packed=True)
  assert len(packed) < len(separate) / 2 and packed.predicted == separate.predicted
  (loss, gradient), (other, theirs) = of(separate), of(packed)
  assert abs(float(loss - other)) < 1e-5
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, theirs)


def test_they_are_mixed_and_evaluated_as_rows_are():
  rows = Answers(PAIRS, 4)
  source = batches([rows], [1.0], 2, seed=0)
  assert sorted(source(0)['tokens'][:, 0]) == [1, 5]
  assert [batch['weights'].sum() for batch in in_order(rows, 1)] == [2, 4]


@pytest.mark.parametrize('texts', [[], [answered([1] * 5, [2])], [answered([], [1])]])
def test_what_makes_no_rows(texts):
  with pytest.raises(UserError, match='no text has anything to be predicted in its first 5 tokens'):
    Answers(texts, 4)
