"""What a sweep is built from: lists of points, each a dict of config fields and their values.

A sweep is a file whose `get_sweep()` returns plain data:

  claim       what the sweep is to show, in words
  source      where that is from
  experiment  whose main runs a point: 'pretrain', 'reward', 'policy'
  config      the file every point starts from
  points      what each point changes, made by the functions below
  baseline    fields of the settings that all others are compared with, all else alike
  metrics     columns of the table with their labels, the first one first of all; `speed.` columns are times
  x           (optional) the field or column of the horizontal axis
  columns     (optional) a family of columns drawn over numbers: {'label': ..., 'metric': ..., 'at': {128: column, ...}}
  frontier    (optional) two metrics, one drawn against the other: what is paid, and what is got for it
  curves      (optional) metrics of evaluations with their labels, drawn over the steps of training
  summary     (optional) numbers of summary.json by name, means over runs: {'metric': ..., 'of': fields of a setting}
  fit         (optional) True: a power law of the first metric over x
  expect      what the claim says of the table: {'metric', 'of', 'than', 'is': 'lower', 'higher' or 'alike', 'margin'},
              or, of a fit, {'is': 'straight', 'margin': relative deviation}; 'where' restricts the settings
  threads     (optional) CPU threads of a point, 1 if not given: on a CPU numbers depend on it in their last digits
"""

from collections.abc import Iterable, Sequence
from typing import Any

Point = dict[str, Any]


def param(field: str, values: Iterable[Any]) -> list[Point]:
  """A point for each value of a field of the config."""
  return [{field: value} for value in values]


def seeds(count: int, first: int = 0) -> list[Point]:
  """A point for each of `count` seeds."""
  return param('seed', range(first, first + count))


def product(*axes: Sequence[Point]) -> list[Point]:
  """Every combination of a point of each axis, the last axis fastest."""
  points: list[Point] = [{}]
  for axis in axes:
    points = [_joined(left, right) for left in points for right in axis]
  return points


def zipped(*axes: Sequence[Point]) -> list[Point]:
  """The first points of all axes joined, then the second ones, and so on; axes must be of one length."""
  points: list[Point] = []
  for parts in zip(*axes, strict=True):
    point: Point = {}
    for part in parts:
      point = _joined(point, part)
    points.append(point)
  return points


def chain(*axes: Sequence[Point]) -> list[Point]:
  """The points of all axes, one axis after the other."""
  return [point for axis in axes for point in axis]


def _joined(left: Point, right: Point) -> Point:
  twice = left.keys() & right.keys()
  if twice:
    raise ValueError(f'{", ".join(sorted(twice))} is set twice in one point')
  return left | right
