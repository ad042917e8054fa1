"""Statistics against scipy's own and against numbers worked by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gpt_jax.evaluation import statistics
from gpt_jax.evaluation.statistics import PowerLaw, by_seed, equivalence, expected, holm, interval, paired, summarize

VALUES = np.array([4.61, 4.63, 4.58, 4.66, 4.60])
OTHERS = np.array([4.64, 4.67, 4.60, 4.71, 4.62])


def test_the_interval_is_the_percentile_bootstraps():
  theirs = stats.bootstrap((VALUES,), np.mean, method='percentile', n_resamples=50_000, rng=1).confidence_interval
  assert interval(VALUES) == pytest.approx((theirs.low, theirs.high), abs=2e-3)
  np.testing.assert_allclose(interval(np.stack([VALUES, VALUES + 1], axis=1)) - interval(VALUES)[:, None], [[0, 1]] * 2,
                             atol=1e-12)  # fmt: skip


def test_a_paired_difference_is_scipys():
  ours, theirs = paired(VALUES, OTHERS), stats.ttest_rel(VALUES, OTHERS)
  bounds = theirs.confidence_interval()
  assert (ours.pairs, ours.mean) == (5, pytest.approx(-0.032))
  assert ours.p_value == pytest.approx(theirs.pvalue)
  assert (ours.low, ours.high) == pytest.approx((bounds.low, bounds.high))


def test_pairs_without_a_partner_do_not_count():
  assert paired(np.array([*VALUES, np.nan]), np.array([*OTHERS, 9.0])) == paired(VALUES, OTHERS)


@pytest.mark.parametrize(
  ('of', 'than', 'p'), [([1.0], [2.0], 1.0), ([1.0, 2.0], [1.0, 2.0], 1.0), ([1.0, 1.0], [2.0, 2.0], 0.0)]
)
def test_differences_without_noise(of, than, p):
  """One pair proves nothing; what is never otherwise, such as a count of parameters, needs no test."""
  assert paired(np.array(of), np.array(than)).p_value == p


def test_equivalence_needs_the_whole_interval_within_the_margin():
  """Two one-sided tests at 5% pass just when the 90% interval of the difference lies within the margin."""
  bounds = stats.ttest_rel(VALUES, OTHERS).confidence_interval(0.9)
  edge = max(abs(bounds.low), abs(bounds.high))
  assert equivalence(VALUES, OTHERS, 1.01 * edge) < 0.05 < equivalence(VALUES, OTHERS, 0.99 * edge)


def test_holm_by_hand():
  """0.01 times 4, 0.02 times 3, 0.03 times 2 but no less than the one before, 0.4 once."""
  assert holm([0.03, 0.01, 0.4, 0.02]) == pytest.approx([0.06, 0.04, 0.4, 0.06])
  assert holm([]) == []


def test_a_new_mean_falls_where_it_is_expected():
  """In 95% of 2,000 trials, as the mean of five new values is off by the noise of both means."""
  rng, inside = np.random.default_rng(0), 0
  for _ in range(2000):
    first, second = rng.normal(3, 0.2, 5), rng.normal(3, 0.2, 5)
    low, high = expected(first, 5)
    inside += low <= second.mean() <= high
  assert 0.935 < inside / 2000 < 0.965


def test_a_power_law_is_found_again():
  x = np.geomspace(1e9, 1e12, 8)
  law = statistics.power_law(x, PowerLaw(30.0, 0.07)(x))
  assert (law.coefficient, law.exponent) == pytest.approx((30.0, 0.07))
  curves = {seed: (x, PowerLaw(30.0, 0.07 + 0.001 * seed)(x)) for seed in range(5)}
  low, high = statistics.exponent_interval(curves)
  assert 0.07 < low < 0.072 < high < 0.074


def table():
  rows = [(norm, seed, 'finished', 4 + (norm == 'rms') + seed) for seed in range(3) for norm in ('rms', 'layer')]
  rows[-1] = ('layer', 2, 'diverged', np.nan)
  return pd.DataFrame(rows, columns=['norm', 'seed', 'status', 'loss'])


def test_a_summary_counts_what_diverged_and_leaves_it_out():
  rms, layer = summarize(table(), ['norm'], 'loss').to_dict('records')
  assert (rms['norm'], rms['runs'], rms['diverged'], rms['mean'], rms['sd']) == ('rms', 3, 0, 6.0, 1.0)
  assert (layer['runs'], layer['diverged'], layer['mean']) == (3, 1, 4.5)
  assert rms['low'] == pytest.approx(5) and rms['high'] == pytest.approx(7)


def test_pairs_are_of_one_seed():
  shuffled = table().sample(frac=1, random_state=1)
  pairs = by_seed(shuffled, 'loss', {'norm': 'rms'}, {'norm': 'layer'})
  assert (pairs['of'] - pairs['than']).tolist() == [1, 1], 'the seed that diverged has no pair'
