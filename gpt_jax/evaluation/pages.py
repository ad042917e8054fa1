"""A page for a finished sweep: the claim, whether it held, figures, tables, and how to run it again."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
import platform
from typing import Any, Literal

from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from gpt_jax.evaluation import figures
from gpt_jax.evaluation.figures import Curves, label
from gpt_jax.evaluation.statistics import (
  by_seed,
  equivalence,
  expected,
  exponent_interval,
  holm,
  lookup,
  paired,
  power_law,
  summarize,
)
from gpt_jax.training.logs import read_lines
from gpt_jax.training.workdir import read_json, write_json, write_whole

LEVEL = 0.05
"""Of a verdict, after Holm's correction over all tests of a page."""

CURVES = 8
"""Settings at most in the figure of learning curves."""

Setting = dict[str, Any]
Verdict = Literal['held', 'not shown', 'contradicted']
SUMMARY = {'held': 'The claim held here', 'not shown': 'The claim was not shown here',
           'contradicted': 'The claim did not hold here'}  # fmt: skip


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

  def pairs(self, metric: str, of: Setting, than: Setting) -> tuple[np.ndarray, np.ndarray]:
    """The metric of two settings, a place a seed that both have."""
    both = by_seed(self.table, metric, of, than)
    return both['of'].to_numpy(), both['than'].to_numpy()


# ---- what the runs say ----------------------------------------------------------------------------------------------


def findings(results: Results) -> list[Finding]:
  """What the runs say of each expectation, at LEVEL over all of them together."""
  tests, found = [], []
  for expectation in results.spec['expect']:
    if expectation['is'] == 'straight':
      found.append(_straight(results, expectation['margin']))
    else:
      tests += _tests(results, expectation)
  for_it, against_it = holm([test[1] for test in tests]), holm([test[2] for test in tests])
  for (text, _, _), p_for, p_against in zip(tests, for_it, against_it, strict=True):
    verdict: Verdict = 'held' if p_for < LEVEL else 'contradicted' if p_against < LEVEL else 'not shown'
    p = min(p_for, p_against)
    found.append(Finding(f'{text} ({f"p = {p:.2g}" if p else "always the same"})', verdict))
  return found


def _tests(results: Results, expectation: Mapping[str, Any]) -> list[tuple[str, float, float]]:
  """Of every setting that the expectation is of: what is expected and found, and p-values for it and against it."""
  metric, relation, margin = expectation['metric'], expectation['is'], expectation.get('margin', 0.0)
  wanted = {**expectation.get('where', {}), **expectation['of']}
  tests = []
  for setting in results.settings:
    if not all(setting.get(field) == value for field, value in wanted.items()):
      continue
    of, than = results.pairs(metric, setting, {**setting, **expectation['than']})
    difference = paired(of, than)
    text = (
      f'{_label(results, metric)} of {label(setting)} against {label(expectation["than"])}, expected '
      f'{relation}{f" within {margin}" if relation == "alike" else ""}: {_mean(of)} against {_mean(than)}, '
      f'difference {_with_interval(difference.mean, difference.low, difference.high)}, {difference.pairs} seeds'
    )
    if relation == 'alike':
      apart = paired(np.sign(difference.mean) * (of - than), np.full(len(of), float(margin)))
      tests.append((text, equivalence(of, than, margin), apart.p_value if apart.mean > 0 else 1.0))
    else:
      right = difference.mean < 0 if relation == 'lower' else difference.mean > 0
      tests.append((text, difference.p_value if right else 1.0, 1.0 if right else difference.p_value))
  return tests


def _law(results: Results) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
  """The mean curve of the first metric over x, and the interval of its exponent."""
  x, metric = results.spec['x'], results.metric
  means = results.table.groupby(x)[metric].mean()
  curves = {
    seed: (runs[x].to_numpy(float), runs[metric].to_numpy(float)) for seed, runs in results.table.groupby('seed')
  }
  return means.index.to_numpy(float), means.to_numpy(float), exponent_interval(curves)


def _straight(results: Results, margin: float) -> Finding:
  x, y, (low, high) = _law(results)
  law = power_law(x, y)
  off = float(np.max(np.abs(y / law(x) - 1)))
  text = (
    f'{_label(results, results.metric)} over {_label(results, results.spec["x"])} follows {law.coefficient:.3g} '
    f'x^-{law.exponent:.4f} (exponent {low:.4f} to {high:.4f}), expected within {margin:.1%}: '
    f'at most {off:.1%} off'
  )
  return Finding(text, 'held' if off <= margin else 'contradicted')


def verdict(found: Sequence[Finding]) -> Verdict:
  """Of the whole claim: it held if all of it held, and did not if any of it was contradicted."""
  for answer in ('contradicted', 'not shown', 'held'):
    if any(finding.verdict == answer for finding in found):
      return answer  # type: ignore[return-value]
  return 'not shown'


# ---- the page ------------------------------------------------------------------------------------------------------


def write(root: pathlib.Path, results: Results, command: str, again: pd.DataFrame | None = None) -> str:
  """Writes root/NAME/README.md with its figures and tables, and the index of all pages; returns the verdict.

  `again` is the table of the same sweep on other seeds, for a section that says where they fell.
  """
  folder = root / results.name
  folder.mkdir(parents=True, exist_ok=True)
  found = findings(results)
  answer = verdict(found)
  for name, figure in drawn(results).items():
    figure.savefig(folder / f'{name}.png', dpi=110)
  times = [column for column in results.table if column.startswith('speed.')]
  for name, columns in (('table.csv', results.table.columns.drop(times)), ('times.csv', ['point', *times])):
    write_whole(folder / name, results.table[columns].to_csv(index=False))
  write_json(folder / 'page.json', {'claim': results.spec['claim'], 'verdict': answer})
  write_whole(folder / 'README.md', _text(results, found, command, again))
  _index(root)
  return answer


def drawn(results: Results) -> dict[str, Figure]:
  """The figures of a page by name: each metric by setting or over x, a family of columns, learning curves."""
  spec, table, fields = results.spec, results.table, results.fields
  made = {}
  for metric, metric_label in spec['metrics'].items():
    name = metric.replace('.', '_')
    if spec['x']:
      law = power_law(*_law(results)[:2]) if spec['fit'] and metric == results.metric else None
      made[name] = figures.lines(table, fields, spec['x'], _label(results, spec['x']), metric, metric_label, law)
    elif (table.groupby(list(fields))[metric].nunique() > 1).any():  # else the table says it all
      made[name] = figures.dots(table, fields, metric, metric_label)
  if spec['columns']:
    family = spec['columns']
    made['columns'] = figures.columns(table, fields, family['at'], family['label'], family['metric'])
  made['curves'] = figures.curves(curves(results))
  return made


def curves(results: Results) -> Curves:
  """Training loss by setting and seed; over a field x only the best x of each group, of others the first CURVES."""
  chosen = results.settings
  if results.spec['x'] in results.fields:
    x = results.spec['x']
    means = summarize(results.table, results.fields, results.metric)
    groups = [field for field in results.fields if field != x]
    best = means.sort_values('mean').drop_duplicates(groups or None)[list(results.fields)].to_dict('records')
    chosen = [setting for setting in chosen if setting in best]
  found = {}
  for setting in chosen[:CURVES]:
    runs = lookup(results.table, setting)
    points = {}
    for _, run in runs[runs['status'] == 'finished'].iterrows():
      lines = read_lines(results.folders[run['point']])
      points[run['seed']] = [(float(line['tokens']), line['loss']) for line in lines if line.get('loss') is not None]
    if points:
      found[label(setting)] = points
  return found


def _text(results: Results, found: Sequence[Finding], command: str, again: pd.DataFrame | None) -> str:
  spec, table = results.spec, results.table
  parts = [
    f'# {results.name}',
    f'**Claim.** {spec["claim"]} ({spec["source"]})',
    f'**{SUMMARY[verdict(found)]}**, at this size and on this text:',
    '\n'.join(f'- {finding.verdict}: {finding.text}' for finding in found),
    'A verdict is at p < 0.05 by paired t-tests over seeds, corrected by Holm over the page; intervals are 95%.',
    *(f'![{name}]({name}.png)' for name in drawn(results)),
    '## Settings',
    'Means over seeds; low and high are the bootstrap interval of the mean.',
    *(_summary(results, metric) for metric in spec['metrics']),
    '## Differences',
    f'Every setting less the baseline ({label(spec["baseline"])}), all else alike, seed by seed.',
    *(_differences(results, metric) for metric in spec['metrics']),
  ]
  if again is not None:
    parts += ['## A second run', _second(results, again)]
  parts += ['## How to run it again', f'```console\n$ {command}\n```', _facts(results)]
  diverged = int((table['status'] == 'diverged').sum())
  if diverged:
    parts.insert(4, f'{diverged} of {len(table)} runs diverged; they have no final loss and are left out of the means.')
  return '\n\n'.join(parts) + '\n'


def _summary(results: Results, metric: str) -> str:
  rows = summarize(results.table, results.fields, metric)
  return markdown(_short(rows).rename(columns={'mean': f'mean {_label(results, metric)}'}))


def _differences(results: Results, metric: str) -> str:
  """Of every setting against its counterpart at the baseline; which are larger than the noise."""
  compared = []
  for setting in results.settings:
    other = {**setting, **results.spec['baseline']}
    if other != setting and len(lookup(results.table, other)):
      compared.append((setting, paired(*results.pairs(metric, setting, other))))
  adjusted = holm([difference.p_value for _, difference in compared])
  rows = [
    {
      **setting, f'difference in {_label(results, metric)}': difference.mean, 'low': difference.low,
      'high': difference.high, 'pairs': difference.pairs, 'p (Holm)': p,
      'larger than noise': 'yes' if p < LEVEL else 'no',
    }
    for (setting, difference), p in zip(compared, adjusted, strict=True)
  ]  # fmt: skip
  return markdown(_short(pd.DataFrame(rows)))


def _second(results: Results, again: pd.DataFrame) -> str:
  """Where the means of other seeds fell, and where they were to fall."""
  rows = []
  for setting in results.settings:
    first, second = (lookup(table, setting)[results.metric].dropna() for table in (results.table, again))
    if len(first) > 1 and len(second):
      low, high = expected(first.to_numpy(float), len(second))
      inside = 'yes' if low <= second.mean() <= high else 'no'
      rows.append({**setting, 'first mean': first.mean(), 'expected from': low, 'to': high,
                   'second mean': second.mean(), 'inside': inside})  # fmt: skip
  seeds = sorted(again['seed'].unique())
  inside = sum(row['inside'] == 'yes' for row in rows)
  return (
    f'The same command with `--first_seed={seeds[0]}` (seeds {seeds[0]} to {seeds[-1]}). The first run says where the '
    f'mean {_label(results, results.metric)} of as many other seeds falls in 95% of cases; {inside} of {len(rows)} '
    f'fell there.\n\n{markdown(_short(pd.DataFrame(rows)))}'
  )


def _facts(results: Results) -> str:
  """Versions, machine and time, by what the runs left."""
  config = read_json(next(iter(results.folders.values())) / 'config.json')
  versions = ', '.join(f'{name} {version}' for name, version in config['versions'].items())
  seconds = results.table.get('speed.seconds', pd.Series(dtype=float)).sum()
  devices = ', '.join(sorted(set(results.table.get('speed.devices', pd.Series(dtype=str)).dropna())))
  threads = f'{results.spec["threads"]} thread{"s" if results.spec["threads"] > 1 else ""}'
  return (
    f'{len(results.table)} runs, {seconds / 60:.0f} minutes of training in all, on {devices} ({_processor()}; '
    f'{threads} a run). Versions: {versions}. Each row of [table.csv](table.csv) is a run; '
    '[times.csv](times.csv) has what depends on the machine.'
  )


def _processor() -> str:
  """The processor's own name, where the system tells it."""
  path = pathlib.Path('/proc/cpuinfo')
  names = [line for line in path.read_text().splitlines() if line.startswith('model name')] if path.exists() else []
  return names[0].partition(':')[2].strip() if names else platform.machine()


def _index(root: pathlib.Path) -> None:
  """root/README.md: every page with its claim and verdict."""
  rows = []
  for path in sorted(root.glob('*/page.json')):
    page = json.loads(path.read_text())
    rows.append({'page': f'[{path.parent.name}]({path.parent.name}/README.md)', **page})
  title = 'Claims of the lineage, tried here: each page is written by the command it shows.'
  write_whole(root / 'README.md', f'# Results\n\n{title}\n\n{markdown(pd.DataFrame(rows))}\n')


def _label(results: Results, column: str) -> str:
  return results.spec['metrics'].get(column) or column.rpartition('.')[2].replace('_', ' ')


def _short(rows: pd.DataFrame) -> pd.DataFrame:
  return rows.rename(columns=lambda name: name.rpartition('.')[2].replace('_', ' '))


def markdown(rows: pd.DataFrame) -> str:
  """A table in Markdown."""
  return rows.map(_number).to_markdown(index=False, disable_numparse=True)


def _number(value: Any) -> str:
  """Four significant digits, or all of a whole number."""
  if not isinstance(value, float):
    return str(value)
  return f'{value:,.0f}' if value.is_integer() or 1e4 <= abs(value) < 1e7 else f'{value:.4g}'


def _mean(values: np.ndarray) -> str:
  return _number(float(values.mean())) if len(values) else 'no runs'


def _with_interval(mean: float, low: float, high: float) -> str:
  return f'{mean:+.3g} ({low:+.3g} to {high:+.3g})'
