"""A page for a finished sweep: the claim, whether it held, figures, tables, and how to run it again."""

from collections.abc import Mapping, Sequence
import json
import pathlib
import platform

from matplotlib.figure import Figure
import pandas as pd

from gpt_jax.evaluation import figures
from gpt_jax.evaluation.figures import Curves, label, last_name
from gpt_jax.evaluation.findings import LEVEL, Finding, Results, Verdict, findings, number, verdict
from gpt_jax.evaluation.statistics import expected, holm, lookup, paired, power_law, summarize
from gpt_jax.training.logs import read_lines
from gpt_jax.training.workdir import read_json, write_json, write_whole

CURVES = 8
"""Settings at most in the figure of learning curves."""

SUMMARY: Mapping[Verdict, str] = {
  'held': 'The claim held here',
  'not shown': 'The claim was not shown here',
  'contradicted': 'The claim did not hold here',
}


def write(root: pathlib.Path, results: Results, command: str, again: pd.DataFrame | None = None) -> Verdict:
  """Writes root/NAME/README.md with its figures and tables, and the index of all pages; returns the verdict.

  `again` is the table of the same sweep on other seeds, for a section that says where they fell.
  """
  folder = root / results.name
  folder.mkdir(parents=True, exist_ok=True)
  found = findings(results)
  answer = verdict(found)
  drawings = drawn(results)
  for name, figure in drawings.items():
    figure.savefig(folder / f'{name}.png', dpi=110)
  times = [column for column in results.table if column.startswith('speed.')]
  for name, columns in (('table.csv', results.table.columns.drop(times)), ('times.csv', ['point', *times])):
    write_whole(folder / name, results.table[columns].to_csv(index=False))
  write_json(folder / 'page.json', {'claim': results.spec['claim'], 'verdict': answer})
  if results.spec['summary']:
    write_json(folder / 'summary.json', summary(results))
  write_whole(folder / 'README.md', _text(results, found, list(drawings), command, again))
  _index(root)
  return answer


def summary(results: Results) -> dict[str, float | int]:
  """The numbers that the sweep asks for: means over the runs of a setting, and how many seeds each has at least."""
  found: dict[str, float | int] = {}
  seeds = []
  for name, wanted in results.spec['summary'].items():
    runs = lookup(results.table, wanted['of'])
    seeds.append(runs['seed'].nunique())
    found[name] = float(runs[wanted['metric']].mean())
  return {'seeds': int(min(seeds)), **found}


def drawn(results: Results) -> dict[str, Figure]:
  """The figures of a page by name: each metric by setting or over x, a family of columns, learning curves."""
  spec, table, fields = results.spec, results.table, results.fields
  made = {}
  for metric, metric_label in spec['metrics'].items():
    name = metric.replace('.', '_')
    if spec['x']:
      law = power_law(*results.curve()) if spec['fit'] and metric == results.metric else None
      made[name] = figures.lines(table, fields, spec['x'], results.label(spec['x']), metric, metric_label, law)
    elif (table.groupby(list(fields))[metric].nunique() > 1).any():  # else the table says it all
      made[name] = figures.dots(table, fields, metric, metric_label)
  if spec['columns']:
    family = spec['columns']
    made['columns'] = figures.columns(table, fields, family['at'], family['label'], family['metric'])
  if spec['frontier']:
    x, y = spec['frontier']
    made['frontier'] = figures.frontier(table, fields, x, results.label(x), y, results.label(y))
  for metric, metric_label in spec['curves'].items():
    made[f'{metric}_over_steps'] = figures.curves(curves(results, 'step', metric), 'updates', metric_label, False)
  if not spec['curves']:
    made['curves'] = figures.curves(curves(results, 'tokens', 'loss'))
  return made


def curves(results: Results, along: str, metric: str) -> Curves:
  """What the logs say by setting and seed; over a field x only the best x of each group, of others the first CURVES."""
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
      points[run['seed']] = [
        (float(line[along]), float(line[metric])) for line in lines if line.get(metric) is not None
      ]
    if points:
      found[label(setting)] = points
  return found


def _text(
  results: Results, found: Sequence[Finding], drawings: Sequence[str], command: str, again: pd.DataFrame | None
) -> str:
  spec, table = results.spec, results.table
  parts = [
    f'# {results.name}',
    f'**Claim.** {spec["claim"]} ({spec["source"]})',
    f'**{SUMMARY[verdict(found)]}**, at this size and on this text:',
    '\n'.join(f'- {finding.verdict}: {finding.text}' for finding in found),
    'A verdict is at p < 0.05 by paired t-tests over seeds, corrected by Holm over the page; intervals are 95%.',
    *(f'![{name}]({name}.png)' for name in drawings),
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
  return markdown(_short(rows).rename(columns={'mean': f'mean {results.label(metric)}'}))


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
      **setting, f'difference in {results.label(metric)}': difference.mean, 'low': difference.low,
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
    f'mean {results.label(results.metric)} of as many other seeds falls in 95% of cases; {inside} of {len(rows)} '
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
    f'{len(results.table)} runs{_size(results.table)}, {seconds / 60:.0f} minutes of training in all, on {devices} '
    f'({_processor()}; {threads} a run). Versions: {versions}. Each row of [table.csv](table.csv) is a run; '
    '[times.csv](times.csv) has what depends on the machine.'
  )


def _size(table: pd.DataFrame) -> str:
  """Of the models, and of what they were trained on, where all of that is known."""
  if not {'parameters', 'tokens'} <= set(table):
    return ''
  ranges = []
  for column, unit in (('parameters', 1e6), ('tokens', 1e3)):
    low, high = table[column].min() / unit, table[column].max() / unit
    ranges.append(f'{low:.3g}' if low == high else f'{low:.3g} to {high:.3g}')
  return f' of {ranges[0]} million parameters on {ranges[1]} thousand tokens'


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
  title = 'Claims of the lineage, tried here: each page shows the command that gave it.'
  write_whole(root / 'README.md', f'# Results\n\n{title}\n\n{markdown(pd.DataFrame(rows))}\n')


def _short(rows: pd.DataFrame) -> pd.DataFrame:
  return rows.rename(columns=last_name)


def markdown(rows: pd.DataFrame) -> str:
  """A table in Markdown."""
  return rows.map(number).to_markdown(index=False, disable_numparse=True)
