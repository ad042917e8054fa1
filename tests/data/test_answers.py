"""Prompts and answers as rows."""

import numpy as np
import pytest

from gpt_jax.data.answers import Answers
from gpt_jax.data.mixture import batches
from gpt_jax.data.rows import Dataset, in_order
from gpt_jax.types import UserError

PAIRS = [([5, 6], [7, 8]), ([1], [2, 3, 4, 5, 6]), ([9, 9, 9], [])]


def test_rows_by_hand():
  rows = Answers(PAIRS, 4)
  assert isinstance(rows, Dataset) and len(rows) == 3
  batch = rows.batch(np.array([0, 1, 2, -1]))
  np.testing.assert_array_equal(batch['tokens'], [[5, 6, 7, 8, 0], [1, 2, 3, 4, 5], [9, 9, 9, 0, 0], [0] * 5])
  np.testing.assert_array_equal(batch['weights'], [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1], [0] * 5, [0] * 5])
  layout = batch['layout']
  np.testing.assert_array_equal(layout.segment, [[1, 1, 1, 1, 0], [1] * 5, [1, 1, 1, 0, 0], [0] * 5])
  np.testing.assert_array_equal(layout.position[0], [0, 1, 2, 3, 0])
  np.testing.assert_array_equal(layout.order[3], range(5))


def test_they_are_mixed_and_evaluated_as_rows_are():
  rows = Answers(PAIRS, 4)
  source = batches([rows], [1.0], 3, seed=0)
  assert sorted(source(0)['tokens'][:, 0]) == [1, 5, 9]
  assert [batch['weights'].sum() for batch in in_order(rows, 2)] == [6, 0]


def test_what_makes_no_rows():
  with pytest.raises(UserError, match='no prompt'):
    Answers([], 4)
  with pytest.raises(UserError, match='prompt 0 has 5 tokens'):
    Answers([([1] * 5, [2])], 4)
