"""What the runs of a sweep say of its claim."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any, Literal

from jaxtyping import Float
import numpy as np
import pandas as pd

from gpt_jax.evaluation.figures import label, last_name
from gpt_jax.evaluation.statistics import by_seed, equivalence, exponent_interval, holm, paired, power_law

LEVEL = 0.05
"""Of a verdict, after Holm's correction over all tests of a page."""

Setting = dict[str, Any]
"""What points have in common that differ in their seed."""

Verdict = Literal['contradicted', 'not shown', 'held']


@dataclasses.dataclass(frozen=True)
class Finding:
  """One expectation of a claim, and what the runs say of it."""

  text: str
  verdict: Verdict


@dataclasses.dataclass(frozen=True)
class Results:
  """The runs of a sweep: its file's data, its table with the times, and the fields that its points vary."""

  name: str
  spec: Mapping[str, Any]
  table: pd.DataFrame
  fields: Sequence[str]
  folders: Mapping[str, pathlib.Path]
  """Of each point."""

  @property
  def settings(self) -> list[Setting]:
    """What is compared: the points, seeds apart, in order."""
    rows = self.table[list(self.fields)].drop_duplicates().to_dict('records')
    return [{field: value for field, value in row.items() if pd.notna(value)} for row in rows]

  @property
  def metric(self) -> str:
    """The first one of all."""
    return next(iter(self.spec['metrics']))

  def label(self, column: str) -> str:
    """What a column is called."""
    said = self.spec['x_label'] if column == self.spec['x'] else self.spec['metrics'].get(column)
    return said or last_name(column)

  def pairs(self, metric: str, of: Setting, than: Setting) -> tuple[Float[np.ndarray, 'n'], Float[np.ndarray, 'n']]:
    """The metric of two settings, a place a seed that both have."""
    both = by_seed(self.table, metric, of, than).astype(float)
    return both['of'].to_numpy(), both['than'].to_numpy()

  def curve(self) -> tuple[Float[np.ndarray, 'n'], Float[np.ndarray, 'n']]:
    """The mean of the first metric over x."""
    means = self.table.groupby(self.spec['x'])[self.metric].mean()
    return means.index.to_numpy(float), means.to_numpy(float)


def findings(results: Results) -> list[Finding]:
  """What the runs say of each expectation, at LEVEL over all of them together."""
  tests: list[tuple[str, float, float]] = []
  found = []
  for expectation in results.spec['expect']:
    if expectation['is'] == 'straight':
      found.append(_straight(results, expectation['margin']))
    else:
      tests += _tests(results, expectation)
  for_it, against_it = holm([test[1] for test in tests]), holm([test[2] for test in tests])
  for (text, _, _), p_for, p_against in zip(tests, for_it, against_it, strict=True):
    answer: Verdict = 'held' if p_for < LEVEL else 'contradicted' if p_against < LEVEL else 'not shown'
    p = min(p_for, p_against)
    found.append(Finding(f'{text} ({f"p = {p:.2g}" if p else "always the same"})', answer))
  return found


def verdict(found: Sequence[Finding]) -> Verdict:
  """Of the whole claim: it held if all of it held, and did not if any of it was contradicted."""
  answers: tuple[Verdict, ...] = ('contradicted', 'not shown', 'held')
  return next((answer for answer in answers if any(finding.verdict == answer for finding in found)), 'not shown')


def _tests(results: Results, expectation: Mapping[str, Any]) -> list[tuple[str, float, float]]:
  """Of every setting that the expectation is of: what is expected and found, and p-values for it and against it."""
  metric, relation, margin = expectation['metric'], expectation['is'], expectation.get('margin', 0.0)
  wanted = {**expectation.get('where', {}), **expectation['of']}
  tests = []
  for setting in results.settings:
    if not wanted.items() <= setting.items():
      continue
    of, than = results.pairs(metric, setting, {**setting, **expectation['than']})
    difference = paired(of, than)
    text = (
      f'{results.label(metric)} of {label(setting)} against {label(expectation["than"])}, expected '
      f'{relation}{f" within {margin}" if relation == "alike" else ""}: {_mean(of)} against {_mean(than)}, difference '
      f'{difference.mean:+.3g} ({difference.low:+.3g} to {difference.high:+.3g}), {difference.pairs} seeds'
    )
    if relation == 'alike':
      beyond = paired(np.sign(difference.mean) * (of - than), np.full(len(of), float(margin)))
      tests.append((text, equivalence(of, than, margin), beyond.p_value if beyond.mean > 0 else 1.0))
    else:
      right = difference.mean < 0 if relation == 'lower' else difference.mean > 0
      tests.append((text, difference.p_value if right else 1.0, 1.0 if right else difference.p_value))
  return tests


def _straight(results: Results, margin: float) -> Finding:
  """Whether the mean curve stays within `margin`, as a fraction, of its power law."""
  (x, y), name = results.curve(), results.spec['x']
  line = power_law(x, y)
  curves = {
    seed: (runs[name].to_numpy(float), runs[results.metric].to_numpy(float))
    for seed, runs in results.table.groupby('seed')
  }
  low, high = exponent_interval(curves)
  off = float(np.max(np.abs(y / line(x) - 1)))
  text = (
    f'{results.label(results.metric)} over {results.label(name)} follows {line.coefficient:.3g} x^-{line.exponent:.4f} '
    f'(exponent {low:.4f} to {high:.4f}), expected within {margin:.1%}: at most {off:.1%} off'
  )
  return Finding(text, 'held' if off <= margin else 'contradicted')


def number(value: Any) -> str:
  """Four significant digits, or all of a whole number."""
  if not isinstance(value, float):
    return str(value)
  return f'{value:,.0f}' if value.is_integer() or 1e4 <= abs(value) < 1e7 else f'{value:.4g}'


def _mean(values: Float[np.ndarray, 'n']) -> str:
  return number(float(values.mean())) if len(values) else 'no runs'
