"""Curves of a run as PNG files."""

from collections.abc import Sequence
import math
import pathlib
from typing import Any

from matplotlib.figure import Figure

from gpt_jax import hosts

Lines = Sequence[dict[str, Any]]


def plot(workdir: str | pathlib.Path, lines: Lines) -> None:
  """Draws DIR/plots/{loss,learning_rate,grad_norm}.png from the lines of metrics.jsonl, and all else in metrics.png."""
  folder = pathlib.Path(workdir) / 'plots'
  folder.mkdir(parents=True, exist_ok=True)
  curves = (
    ('loss', 'loss (nats per predicted token)'),
    ('learning_rate', 'learning rate'),
    ('grad_norm', 'gradient norm before clipping'),
  )
  for name, label in curves:
    steps, values = _curve(lines, name)
    if not steps:
      continue
    figure = Figure(figsize=(6.4, 4), layout='constrained')
    axes = figure.add_subplot(xlabel='step', ylabel=label)
    if name == 'learning_rate':
      axes.plot(steps, values)
    else:
      axes.plot(steps, values, color='C0', alpha=0.3, linewidth=1)
      axes.plot(steps, smoothed(values), color='C0', label='training (smoothed)')
    if name == 'loss':
      for number, held_out in enumerate(_held_out(lines)):
        axes.plot(
          *_curve(lines, held_out), 'o-', color=f'C{number + 1}', markersize=3, label=held_out.removesuffix('_loss')
        )
    if name == 'grad_norm':
      axes.set_yscale('log')
    if axes.get_legend_handles_labels()[0]:
      axes.legend()
    axes.grid(alpha=0.3)
    save(figure, folder / f'{name}.png')
  elsewhere = {*ELSEWHERE, *_held_out(lines)}
  others = [name for name in dict.fromkeys(name for line in lines for name in line) if name not in elsewhere]
  if others := [name for name in others if not name.endswith('_perplexity') and _curve(lines, name)[0]]:
    save(_panels(lines, others), folder / 'metrics.png')


ELSEWHERE = ('step', 'loss', 'learning_rate', 'grad_norm', 'tokens', 'tokens_per_second', 'seconds')
"""What has a figure of its own, or none."""

COLUMNS = 4


def _panels(lines: Lines, names: Sequence[str]) -> Figure:
  """A small plot of each metric over the steps; evaluations, which are few, have dots."""
  rows = -(-len(names) // COLUMNS)
  figure = Figure(figsize=(3.2 * COLUMNS, 2.2 * rows))
  figure.subplots_adjust(left=0.04, right=0.99, bottom=0.22 / rows, top=1 - 0.12 / rows, hspace=0.4)
  for number, name in enumerate(names):
    axes = figure.add_subplot(rows, COLUMNS, number + 1)
    steps, values = _curve(lines, name)
    axes.plot(steps, values, 'o-' if len(steps) < 30 else '-', markersize=3, linewidth=1)
    axes.set_title(name.replace('_', ' '), fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
  return figure


def save(figure: Figure, path: pathlib.Path) -> None:
  """Writes a figure whole or not at all. Of several processes one writes."""
  if not hosts.leads():
    return
  temporary = path.with_name(f'.{path.stem}.tmp.png')  # Matplotlib goes by the ending
  figure.savefig(temporary, dpi=120)
  temporary.replace(path)


def smoothed(values: Sequence[float]) -> list[float]:
  """Exponential average over about a fiftieth of the curve, corrected for its start (as Adam's moments are)."""
  keep = 1 - 1 / max(1, len(values) / 50)
  total, weight, result = 0.0, 0.0, []
  for value in values:
    total, weight = keep * total + value, keep * weight + 1
    result.append(total / weight)
  return result


def _held_out(lines: Lines) -> list[str]:
  """Names of the losses that evaluations found: their lines have no `loss`."""
  return sorted({name for line in lines if 'loss' not in line for name in line if name.endswith('_loss')})


def _curve(lines: Lines, name: str) -> tuple[list[int], list[float]]:
  points = [(line['step'], line[name]) for line in lines if line.get(name) is not None and math.isfinite(line[name])]
  return [step for step, _ in points], [value for _, value in points]
