"""Schedules against numbers by hand."""

import math

import numpy as np
import pytest

from gpt_jax.training.optimizers import learning_rates
from gpt_jax.training.schedules import BatchRamp
from gpt_jax.types import UserError


def rates(num_steps=12, **fields):
  return learning_rates({'learning_rate': 2.0, 'warmup_steps': 2, **fields}, num_steps)


def test_cosine_to_a_fraction():
  found = rates(schedule='cosine', decay_steps=10)
  np.testing.assert_allclose(found[:3], [1.0, 2.0, 2.0], rtol=1e-6)
  assert found[6] == pytest.approx((2.0 + 0.2) / 2)  # half way from 2 to 10
  assert found[4] == pytest.approx(0.2 + 1.8 * (1 + math.cos(math.pi / 4)) / 2)
  np.testing.assert_allclose(found[10:], 0.2, rtol=1e-6)  # and stays there


def test_linear_runs_to_the_end_by_default():
  found = rates(schedule='linear', end_fraction=0.0)
  np.testing.assert_allclose(found[2:], [2.0 * (10 - count) / 10 for count in range(10)], rtol=1e-6)


def test_constant_and_no_warmup():
  np.testing.assert_allclose(rates(schedule='constant', warmup_steps=0), 2.0)


def test_warmup_stable_decay():
  found = rates(schedule='wsd', cooldown_fraction=0.4, end_fraction=0.0)
  np.testing.assert_allclose(found, [1, 2, *[2] * 6, 2, 1.5, 1, 0.5], rtol=1e-6)


def test_inverse_square_root():
  found = rates(num_steps=33, schedule='inverse_sqrt')
  np.testing.assert_allclose([found[1], found[2], found[8], found[32]], [2, 2, 1, 0.5], rtol=1e-6)


def test_unknown_names():
  with pytest.raises(UserError, match=r"optimizer.schedule = 'cosin' is unknown; did you mean 'cosine'\?"):
    rates(schedule='cosin')
  with pytest.raises(UserError, match=r"optimizer.warmup_step is no field; did you mean 'warmup_steps'\?"):
    rates(warmup_step=3)


def test_batch_ramp_follows_the_line():
  """At each step the rows are at most what the line in tokens allows, and more than a quarter of it."""
  ramp = BatchRamp(64, 10, first_rows=2, ramp_tokens=50_000)
  rows = [ramp.rows(index) for index in range(600)]
  assert rows[0] == 2
  assert rows[-1] == 64
  assert set(rows) == {2, 4, 8, 16, 32, 64}
  seen = 0
  for index, size in enumerate(rows):
    assert ramp.start(index) == seen
    line = min(64, 2 + 62 * seen * 10 / 50_000)
    assert line / 2 - 1 <= size <= line + 1e-9
    seen += size


def test_batch_ramp_of_no_tokens():
  ramp = BatchRamp(64, 10, first_rows=2, ramp_tokens=0)
  assert [ramp.rows(0), ramp.start(3)] == [64, 192]
