"""What a compiled program does, read from its text (HLO): collectives and products of matrices, loops multiplied out.

A scanned layer stands in the text once; here it counts as often as it runs. All figures are one device's. How often a
loop runs that depends on numbers no text says: `open_loops` has those, and what is in them counts nothing.
"""

from collections.abc import Iterator
import dataclasses
import math
import re

import numpy as np

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')

BYTES = {'pred': 1, 'bf16': 2, 'f16': 2}
"""Of a number, by HLO's name of its type, where the name does not say its bits."""


@dataclasses.dataclass(frozen=True)
class Collective:
  """One exchange between devices, and how often it runs in a step."""

  kind: str
  bytes: int
  """Of the whole array: gathered, reduced, or of what one device sends."""
  count: int
  group: tuple[int, ...]
  """The devices of its first group, by their places in the mesh."""

  @property
  def moved(self) -> float:
    """Bytes a device sends in a step, by the ring: n - 1 of n parts, and all-reduce those twice."""
    size = len(self.group)
    passes = {'all-reduce': 2 * (size - 1) / size, 'collective-permute': 1.0}
    return self.count * self.bytes * passes.get(self.kind, (size - 1) / size)


@dataclasses.dataclass(frozen=True)
class Instruction:
  name: str
  shape: str
  kind: str
  rest: str
  """Operands and attributes."""

  @property
  def operands(self) -> list[str]:
    return re.findall(r'%([\w.-]+)', self.rest.partition(')')[0])

  def attribute(self, pattern: str) -> str | None:
    found = re.search(pattern, self.rest)
    return found and found[1]


class Program:
  """The text of a compiled program, by computations."""

  def __init__(self, text: str):
    self._bodies: dict[str, list[Instruction]] = {}
    entry = name = ''
    for line in text.splitlines():
      if opened := re.match(r'(ENTRY )?%?([\w.-]+) .*\{$', line):
        name = opened[2]
        entry = name if opened[1] else entry
        self._bodies[name] = []
      # A tuple's shape has brackets and, every fifth part, a comment.
      elif found := re.match(
        r'\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|[^ ]+) ([\w-]+)\((.*)$', line.split('/*metadata')[0]
      ):
        self._bodies[name].append(Instruction(*found.groups()))
    self._runs: dict[str, int] = {}
    self.open_loops: list[str] = []
    """Such as attention in chunks has over the keys of each piece of a row."""
    self._count(entry, 1)
    # A TPU's reduce-scatter is written as a computation of its own: an all-reduce of which a part is taken.
    self._scattered = {
      one.name
      for name, body in self._bodies.items()
      if name.startswith('all-reduce-scatter')
      for one in body
      if one.kind == 'all-reduce'
    }

  def _count(self, name: str, times: int) -> None:
    self._runs[name] = self._runs.get(name, 0) + times
    for one in self._bodies[name]:
      if one.kind == 'while':
        condition, body = (str(one.attribute(rf'{role}=%?([\w.-]+)')) for role in ('condition', 'body'))
        trips = self._trips(one, condition, body)
        if trips is None:
          self.open_loops.append(one.name)
        else:
          self._count(body, times * trips)
        continue
      called = re.findall(r'(?:calls|to_apply|true_computation|false_computation)=%?([\w.-]+)', one.rest)
      called += re.findall(r'[\w.-]+', one.attribute(r'branch_computations=\{([^}]*)\}') or '')
      for inner in called:
        self._count(inner, times)

  def _trips(self, loop: Instruction, condition: str, body: str) -> int | None:
    """How often a loop runs: as XLA notes it, or by what its condition finds a counter, from 0, less than; or None.

    A counter goes up by 1, or by what the body plainly adds to it: loops that XLA makes of a product may take two parts
    at a time.
    """
    if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
      return int(known)
    asked = {one.name: one for one in self._bodies[condition]}
    for one in asked.values():
      if one.kind == 'compare' and one.attribute(r'direction=(LT)'):
        counter, limit = (asked[operand] for operand in one.operands)
        if limit.kind == 'constant' and (index := counter.attribute(r'index=(\d+)')):
          return -(-_constant(limit) // self._added(body, int(index)))
    return None

  def _added(self, body: str, index: int) -> int:
    """What a loop's body adds to one of its numbers."""
    inside = {one.name: one for one in self._bodies[body]}
    new = inside.get(self._bodies[body][-1].operands[index])
    added = [inside[operand] for operand in new.operands if operand in inside] if new and new.kind == 'add' else []
    return next((_constant(one) for one in added if one.kind == 'constant'), 1)

  def _all(self) -> Iterator[tuple[Instruction, int, dict[str, str]]]:
    """Every instruction that runs, how often, and the shapes of what stands beside it."""
    for name, times in self._runs.items():
      shapes = {one.name: one.shape for one in self._bodies[name]}
      for one in self._bodies[name]:
        yield one, times, shapes

  def collectives(self) -> list[Collective]:
    """All collectives. One whose start and end XLA put into several fusions has one channel, and counts once."""
    found: dict[str, Collective] = {}
    for one, times, shapes in self._all():
      kind = one.kind.removesuffix('-start')
      if kind not in KINDS:
        continue
      if one.name in self._scattered:
        kind = 'reduce-scatter'
      given = sum(map(size_of, (shapes.get(operand, '') for operand in one.operands)))
      pieces = _parts(one.shape)
      made = size_of(one.shape)
      if one.kind.endswith('-start') and one.shape.startswith('('):  # operands stand beside results
        made = max(map(size_of, pieces)) if kind == 'collective-permute' else made - given
      size = given if kind in ('reduce-scatter', 'all-reduce', 'all-to-all') and given else made
      channel = one.attribute(r'channel_id=(\d+)') or one.name
      before = found.get(channel)
      if before is None or before.count < times:
        found[channel] = Collective(kind, size, times, group_of(one.rest))
    return [one for one in found.values() if len(one.group) > 1]

  def product_flops(self) -> float:
    """FLOPs of all products of matrices; those inside a kernel of its own (a custom call) are not seen."""
    total = 0.0
    for one, times, shapes in self._all():
      if one.kind in ('dot', 'convolution'):
        left, right = (dimensions(shapes[operand]) for operand in one.operands[:2])
        count = _dot if one.kind == 'dot' else _convolution
        total += times * count(one, left, right)
    return total

  def kernels(self) -> int:
    """Calls of kernels of their own in a step."""
    return sum(times for one, times, _ in self._all() if 'custom_call_target="tpu_custom_call"' in one.rest)


def _constant(one: Instruction) -> int:
  """A whole number."""
  return int(one.rest.partition(')')[0])


def _parts(shape: str) -> list[str]:
  return re.findall(r'[a-z]+\d*[a-z0-9]*\[[\d,]*\]', shape)


def size_of(shape: str) -> int:
  """Bytes of an array's shape as HLO writes it, or of a tuple's together."""
  total = 0
  for part in _parts(shape):
    kind, _, dims = part.partition('[')
    size = BYTES.get(kind) or int(re.sub(r'^[a-z]+', '', kind).partition('e')[0] or 8) / 8
    total += math.ceil(size * math.prod(int(dim) for dim in dims.rstrip(']').split(',') if dim))
  return total


def dimensions(shape: str) -> list[int]:
  """Of an array's shape as HLO writes it."""
  return [int(dim) for dim in _parts(shape)[0].partition('[')[2].rstrip(']').split(',') if dim]


def _dot(one: Instruction, left: list[int], right: list[int]) -> float:
  del right
  contracted = one.attribute(r'lhs_contracting_dims=\{([\d,]*)\}') or ''
  return 2.0 * math.prod(dimensions(one.shape)) * math.prod(left[int(at)] for at in contracted.split(',') if at)


def _convolution(one: Instruction, left: list[int], right: list[int]) -> float:
  """On a TPU, products are convolutions: sums run over input features and over taps that meet a number."""
  labels = one.attribute(r'dim_labels=([\w]+_[\w]+->[\w]+)') or ''
  (of_left, of_right), of_out = labels.partition('->')[0].split('_'), labels.partition('->')[2]
  out = dimensions(one.shape)
  rows, features = out[of_out.index('b')], out[of_out.index('f')]
  total = 2.0 * rows * features * right[of_right.index('i')]
  window = dict(re.findall(r'(\w+)=([\w-]+)', one.attribute(r'window=\{([^}]*)\}') or ''))
  split = lambda name, default: [part for part in window[name].split('x')] if name in window else default
  for axis in (label for label in of_left if label.isdigit()):
    at = int(axis)
    number = lambda name, default=1, at=at: int(split(name, [str(default)] * (at + 1))[at])
    low = int(window['pad'].split('x')[at].split('_')[0]) if 'pad' in window else 0
    starts = np.arange(out[of_out.index(axis)])[:, None] * number('stride') - low
    places = starts + np.arange(right[of_right.index(axis)]) * number('rhs_dilate')
    dilated = number('lhs_dilate')
    meets = (places >= 0) & (places <= (left[of_left.index(axis)] - 1) * dilated) & (places % dilated == 0)
    total *= float(meets.sum())
  return total


def group_of(text: str) -> tuple[int, ...]:
  """The first group of devices of a collective, in any of the ways that HLO writes them.

  Raises:
    ValueError: in none of them.
  """
  if found := re.search(r'source_target_pairs=\{\{(\d+),(\d+)\}', text):
    return int(found[1]), int(found[2])
  if found := re.search(r'replica_groups=\{\{([\d,]+)\}', text):
    return tuple(_numbers(found[1]))
  if found := re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', text):
    return tuple(_devices(found[2], found[3]).reshape(_numbers(found[1]))[0].tolist())
  ids = r'(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?'
  if found := re.search(r'replica_groups=mesh\[([^\]]*)\]' + ids + r' \{([^}]*)\}', text):
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
    # Groups run along whole axes, or along a part of one that has other parts before and behind it.
    along = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", found[4])
    parts = {name: (int(before or 1), int(part or sizes[name])) for name, before, part in along}
    shape: list[int] = []
    for name, size in sizes.items():
      before, part = parts.get(name, (1, 1))
      shape += [before, part, size // (before * part)]
    grid = _devices(found[2] or str(math.prod(sizes.values())), found[3]).reshape(shape)
    return tuple(grid[(0, slice(None), 0) * len(sizes)].reshape(-1).tolist())
  raise ValueError(f'groups of devices in a way that is not known: {text[:200]}')


def _numbers(text: str | None) -> list[int]:
  return [int(one) for one in (text or '').split(',') if one]


def _devices(dims: str, order: str | None) -> np.ndarray:
  """All devices as an array of these dimensions, its axes in this order."""
  grid = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
  return grid.transpose(_numbers(order) or range(grid.ndim))
