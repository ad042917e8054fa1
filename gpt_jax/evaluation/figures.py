"""Figures of many runs: every setting with all its seeds, means, and bands of what the seeds leave open."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from gpt_jax.evaluation.statistics import PowerLaw, interval, lookup, summarize
from gpt_jax.training.plots import smoothed

Curves = Mapping[str, Mapping[Any, Sequence[tuple[float, float]]]]
"""By label, then by seed: points of training (tokens or steps) and what was found there."""

MARKERS = 'osD^vP*X'
LEGEND = 120
"""Letters that a figure is wide, in a legend's size."""


def last_name(field: str) -> str:
  """What a field is called: model.num_layers is num layers."""
  return field.rpartition('.')[2].replace('_', ' ')


def label(setting: Mapping[str, Any]) -> str:
  """How a setting is called: its fields by their last name; parts it does without only where it has no others."""
  setting = {field: value for field, value in setting.items() if value != 'none'} or setting
  return ', '.join(f'{last_name(field)} {value}' for field, value in setting.items())


def blank(x_label: str, y_label: str, height: float = 4.0) -> tuple[Figure, Axes]:
  """A figure of one pair of axes."""
  figure = Figure(figsize=(7.5, height), layout='constrained')
  axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
  axes.grid(alpha=0.3)
  return figure, axes


def dots(table: pd.DataFrame, fields: Sequence[str], metric: str, metric_label: str) -> Figure:
  """A line a setting: each seed a small dot, the mean a large one with its interval."""
  rows = summarize(table, fields, metric)
  figure, axes = blank(metric_label, '', 1.2 + 0.45 * len(rows))
  settings = rows[list(fields)].to_dict('records')
  for place, (setting, row) in enumerate(zip(settings, rows.to_dict('records'), strict=True)):
    values = lookup(table, setting)[metric]
    reach = [[row['mean'] - row['low']], [row['high'] - row['mean']]]
    axes.plot(values, np.full(len(values), place), 'o', color='C0', alpha=0.35, markersize=4)
    axes.errorbar(row['mean'], place, xerr=reach, fmt='D', color='C0', capsize=4, markersize=6)
  axes.set_yticks(range(len(rows)), [label(setting) for setting in settings])
  axes.invert_yaxis()
  axes.margins(y=0.15)
  return figure


def lines(
  table: pd.DataFrame, fields: Sequence[str], x: str, x_label: str, metric: str, metric_label: str,
  law: PowerLaw | None = None,
) -> Figure:  # fmt: skip
  """The mean of the metric over x, a line for each setting of the fields other than x, with bands of 95%."""
  groups = [] if law else [field for field in fields if field != x]
  figure, axes = blank(x_label, metric_label)
  parts = table.groupby(groups, sort=False) if groups else [((), table)]
  for number, (setting, runs) in enumerate(parts):
    rows = summarize(runs, [x], metric).sort_values(x).dropna(subset='mean')
    name = label(dict(zip(groups, setting, strict=True))) if groups else 'mean of the seeds'
    style = '' if law else ('-', '--', ':')[number // 10 % 3]  # there are ten colours
    axes.plot(
      rows[x], rows['mean'], f'{MARKERS[number % len(MARKERS)]}{style}', color=f'C{number}', label=name, markersize=5
    )
    if len(rows) > 1:
      axes.fill_between(rows[x], rows['low'], rows['high'], color=f'C{number}', alpha=0.2, linewidth=0)
    else:  # a band has no width at one place
      reach = [rows['mean'] - rows['low'], rows['high'] - rows['mean']]
      axes.errorbar(rows[x], rows['mean'], yerr=reach, fmt='none', color=f'C{number}', capsize=4)
  places = table[x].dropna().astype(float)
  if law is not None:
    line = np.geomspace(places.min(), places.max(), 50)
    axes.plot(line, law(line), '--', color='black', label=f'{law.coefficient:.3g} x^-{law.exponent:.4f}')
    axes.set_yscale('log')
    axes.yaxis.set_major_formatter('{x:g}')
    axes.yaxis.set_minor_formatter('{x:g}')
  if places.min() > 0 and places.max() / places.min() > 8:
    axes.set_xscale('log')
  _legend(figure, axes)
  return figure


def columns(
  table: pd.DataFrame, fields: Sequence[str], at: Mapping[int, str], x_label: str, metric_label: str
) -> Figure:
  """A line a setting over a family of columns, each of which stands at a number."""
  long = pd.concat([table[[*fields, 'status']].assign(at=number, value=table[name]) for number, name in at.items()])
  figure = lines(long, [*fields, 'at'], 'at', x_label, 'value', metric_label)
  axes = figure.axes[0]
  axes.set_xscale('log', base=2)
  axes.set_xticks(list(at), [str(number) for number in at])
  return figure


def curves(
  runs: Curves,
  x_label: str = 'training tokens',
  y_label: str = 'training loss, smoothed (nats per token)',
  smooth: bool = True,
) -> Figure:
  """Values over the course of training, a line a setting, with the band of its seeds."""
  figure, axes = blank(x_label, y_label)
  for number, (name, seeds) in enumerate(runs.items()):
    length = min(map(len, seeds.values()))
    each = [[value for _, value in points[:length]] for points in seeds.values()]
    values = np.array([smoothed(one) if smooth else one for one in each])
    places = [place for place, _ in next(iter(seeds.values()))[:length]]
    low, high = interval(values)
    axes.plot(places, values.mean(axis=0), color=f'C{number}', label=name, linewidth=1.2)
    axes.fill_between(places, low, high, color=f'C{number}', alpha=0.2, linewidth=0)
  _legend(figure, axes)
  return figure


def frontier(table: pd.DataFrame, fields: Sequence[str], x: str, x_label: str, y: str, y_label: str) -> Figure:
  """One metric against another: each run a small dot, the mean of its setting a large one."""
  figure, axes = blank(x_label, y_label)
  for number, (setting, runs) in enumerate(table.groupby(list(fields), sort=False, dropna=False)):
    name = label({field: value for field, value in zip(fields, setting, strict=True) if pd.notna(value)})
    axes.plot(runs[x], runs[y], 'o', color=f'C{number}', alpha=0.35, markersize=4)
    axes.plot(runs[x].mean(), runs[y].mean(), 'D', color=f'C{number}', label=name, markersize=7)
  _legend(figure, axes)
  return figure


def calibration(table: pd.DataFrame) -> Figure:
  """How often what was predicted came true, by bins of the prediction: dots as large as their `share` of it."""
  figure, axes = blank('predicted probability of being preferred', 'how often it was')
  axes.plot([0, 1], [0, 1], '--', color='black', linewidth=1)
  axes.plot(table['predicted'], table['observed'], color='C0', linewidth=1)
  axes.scatter(table['predicted'], table['observed'], s=10 + 600 * table['share'], color='C0')
  return figure


def _legend(figure: Figure, axes: Axes) -> None:
  """Beside the axes, where it hides nothing."""
  handles, labels = axes.get_legend_handles_labels()
  if labels and labels != ['mean of the seeds']:
    columns = min(max(LEGEND // (max(map(len, labels)) + 8), 1), len(labels), 3)
    figure.set_figheight(figure.get_figheight() + 0.17 * (-(-len(labels) // columns)))
    figure.legend(handles, labels, loc='outside lower center', ncols=columns, fontsize=8)
