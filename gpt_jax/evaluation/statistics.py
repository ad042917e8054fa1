"""What several seeds say: means and their intervals, paired differences, and the law that a curve follows."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from jaxtyping import Float
import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 10_000


def interval(values: Float[np.ndarray, 'n *shape']) -> Float[np.ndarray, '2 *shape']:
  """Low and high end of the percentile bootstrap's interval of the mean over the first axis (Efron 1979), 95%.

  Of a handful of seeds it is too narrow (five: it covers about 80%), so that no verdict here hangs on it.
  """
  resampled = values[np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
  return np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)


def summarize(table: pd.DataFrame, fields: Sequence[str], metric: str) -> pd.DataFrame:
  """A row a setting of `fields`: runs, how many diverged, and of the rest the metric's mean, spread and interval."""
  rows = []
  for setting, runs in table.groupby(list(fields), sort=False, dropna=False):
    values = runs[metric].dropna().to_numpy(float)
    low, high = interval(values) if len(values) > 1 else (np.nan, np.nan)
    spread = values.std(ddof=1) if len(values) > 1 else np.nan
    mean = values.mean() if len(values) else np.nan
    diverged = int((runs['status'] == 'diverged').sum())
    rows.append([*setting, len(runs), diverged, mean, spread, low, high])
  return pd.DataFrame(rows, columns=[*fields, 'runs', 'diverged', 'mean', 'sd', 'low', 'high'])


@dataclasses.dataclass(frozen=True)
class Difference:
  """A metric of one setting less that of another, seed by seed."""

  pairs: int
  mean: float
  low: float
  high: float
  """The interval is Student's, 95%: with few seeds the bootstrap's is too narrow."""
  p_value: float
  """Of the paired t-test, two-sided."""


def paired(of: Float[np.ndarray, 'n'], than: Float[np.ndarray, 'n']) -> Difference:
  """The difference of pairs that share a seed, so the same rows in the same order; one pair has no test."""
  differences = np.asarray(of, float) - np.asarray(than, float)
  differences = differences[np.isfinite(differences)]
  count = len(differences)
  mean = float(differences.mean()) if count else np.nan
  error = float(differences.std(ddof=1) / count**0.5) if count > 1 else np.nan
  if not error > 0:  # one pair, or all alike: nothing to test, or nothing to doubt
    return Difference(count, mean, mean, mean, 1.0 if count < 2 or mean == 0 else 0.0)
  reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
  p_value = float(2 * stats.t.sf(abs(mean) / error, count - 1))
  return Difference(count, mean, mean - reach, mean + reach, p_value)


def equivalence(of: Float[np.ndarray, 'n'], than: Float[np.ndarray, 'n'], margin: float) -> float:
  """The p-value of two one-sided tests that the paired difference lies within +-margin (Schuirmann 1987)."""
  differences = np.asarray(of, float) - np.asarray(than, float)
  differences = differences[np.isfinite(differences)]
  if len(differences) < 2:
    return 1.0
  below = stats.ttest_1samp(differences, -margin, alternative='greater').pvalue
  above = stats.ttest_1samp(differences, margin, alternative='less').pvalue
  return float(max(below, above))


def holm(p_values: Sequence[float]) -> list[float]:
  """p-values for all of several tests at once (Holm 1979)."""
  order = np.argsort(p_values)
  raised = [(len(order) - rank) * p_values[place] for rank, place in enumerate(order)]
  result = np.empty(len(order))
  result[order] = np.minimum(np.maximum.accumulate(raised), 1.0) if len(order) else []
  return result.tolist()


def expected(values: Float[np.ndarray, 'n'], runs: int) -> tuple[float, float]:
  """Where the mean of `runs` further values falls in 95% of cases, by the normal law of the values."""
  count = len(values)
  reach = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * values.std(ddof=1) * (1 / count + 1 / runs) ** 0.5
  return float(values.mean() - reach), float(values.mean() + reach)


@dataclasses.dataclass(frozen=True)
class PowerLaw:
  """y = coefficient * x^-exponent."""

  coefficient: float
  exponent: float

  def __call__(self, x: Any) -> Any:
    return self.coefficient * np.asarray(x, float) ** -self.exponent


def power_law(x: Float[np.ndarray, 'n'], y: Float[np.ndarray, 'n']) -> PowerLaw:
  """The straight line through log x and log y, by least squares."""
  slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
  return PowerLaw(float(np.exp(intercept)), float(-slope))


def exponent_interval(curves: Mapping[Any, tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
  """The bootstrap's interval of the exponent, where whole curves x, y (one a seed) are drawn again."""
  exponents = np.array([power_law(x, y).exponent for x, y in curves.values()])
  low, high = interval(exponents)  # of curves over the same x the fit of the mean is the mean of the fits
  return float(low), float(high)


def lookup(table: pd.DataFrame, setting: Mapping[str, Any]) -> pd.DataFrame:
  """The runs of one setting."""
  matches = np.ones(len(table), bool)
  for field, value in setting.items():
    column = table[field]
    matches &= (column.isna() if value is None else column == value).to_numpy()
  return table[matches]


def by_seed(table: pd.DataFrame, metric: str, of: Mapping[str, Any], than: Mapping[str, Any]) -> pd.DataFrame:
  """Columns `of` and `than` of the metric, a row a seed that both settings have."""
  columns = {name: lookup(table, setting).set_index('seed')[metric] for name, setting in (('of', of), ('than', than))}
  return pd.DataFrame(columns).dropna()
