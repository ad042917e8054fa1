"""Clusters by name: TPU slices, for which programs can be compiled where there is none, and nodes of GPUs."""

from collections.abc import Sequence
import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
import numpy as np

from gpt_jax.sharding import AXES, mesh_shape
from gpt_jax.training.hardware import CHIPS, Chip
from gpt_jax.types import UserError

KNOWN = {
  'v5e': 'v5e:2x2, v5e:4x4, v5e:16x16',
  'v5p': 'v5p:2x2x1, v5p:4x4x4, v5p:8x8x8',
  'v6e': 'v6e:2x2, v6e:16x16',
  'tpu7x': 'tpu7x:2x2x1, tpu7x:4x4x4',
  'h100': 'h100:8, h100:16x8 (nodes of 8)',
  'h200': 'h200:8, h200:16x8',
  'a100': 'a100:8, a100:16x8',
}
"""Examples of each kind."""

# Without a TPU, its compiler looks for one, and writes about that; several may compile at once.
QUIET = {
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
}
QUIET |= {'TPU_STDERR_LOG_LEVEL': '3', 'TPU_MIN_LOG_LEVEL': '3', 'TF_CPP_MIN_LOG_LEVEL': '3'}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Chips, and how they are linked."""

  name: str
  chip: Chip
  sizes: tuple[int, ...]
  """Of the torus; of GPUs nodes, and GPUs of a node."""

  @property
  def chips(self) -> int:
    return math.prod(self.sizes)

  @property
  def devices_count(self) -> int:
    """Of jax's devices."""
    return self.chips * self.chip.devices

  @property
  def is_tpu(self) -> bool:
    return self.chip.axes > 0

  def devices(self) -> list[Any] | None:
    """jax's devices for which a program can be compiled here; None: libtpu is not installed, or they are GPUs.

    Raises:
      UserError: there is no such slice.
    """
    if not self.is_tpu or importlib.util.find_spec('libtpu') is None:
      return None
    from jax.experimental import topologies

    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    try:
      return list(topologies.get_topology_desc(platform='tpu', topology_name=self.name).devices)
    except jax.errors.JaxRuntimeError as error:
      raise UserError(f'--topology={self.name}: {str(error).splitlines()[0]}; such as {KNOWN[self._kind]}') from None

  @property
  def _kind(self) -> str:
    return self.name.partition(':')[0]

  def places(self, axes: dict[str, int]) -> dict[str, np.ndarray]:
    """For each axis of a mesh, the coordinates of the chips of its first group, as a mesh is laid on chips by rank."""
    shape = mesh_shape(axes, self.devices_count)
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in self.sizes), indexing='ij'), -1)
    grid = np.repeat(grid.reshape(-1, len(self.sizes)), self.chip.devices, axis=0).reshape(*shape, len(self.sizes))
    first = lambda at: tuple(slice(None) if other == at else 0 for other in range(len(shape)))
    return {axis: grid[first(at)] for at, axis in enumerate(AXES)}

  def rate(self, places: np.ndarray) -> float:
    """Bytes a second that a chip can send to a group that it exchanges with, where all groups do so at once.

    Of a TPU along each axis of the torus that the group runs along: both ways where that is a ring, one way on a line;
    shared with the groups that lie between its members. Of a GPU to its node, or to others.

    Args:
      places: coordinates of the group's chips, [members, axes].
    """
    if not self.is_tpu:
      inside = len(np.unique(places[:, 0])) == 1
      return (self.chip.link if inside else self.chip.network) or self.chip.link
    total = 0.0 if np.ptp(places, axis=0).any() else math.inf  # inside one chip
    for at, size in enumerate(self.sizes):
      used = np.unique(places[:, at])
      if len(used) > 1:
        ring = len(used) == size and size % self.chip.wraps == 0
        total += self.chip.link * (2 if ring else 1) / int(np.diff(used).min())
    return total


def topology(name: str) -> Topology:
  """A cluster by name: v5p:8x8x8, a torus of chips; h100:16x8, nodes of 8 GPUs; h100:8, one node.

  Raises:
    UserError: no such name; the message has known ones.
  """
  found = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', name)
  chip = CHIPS.get(found[1]) if found and found[1] in KNOWN else None
  if found is None or chip is None:
    raise UserError(f'--topology={name} is unknown; known: {"; ".join(KNOWN.values())}')
  sizes = tuple(map(int, found[2].split('x')))
  sizes = sizes if chip.axes or len(sizes) > 1 else (1, *sizes)
  if len(sizes) != (chip.axes or 2) or min(sizes) < 1:
    raise UserError(f'--topology={name}: a {found[1]} has {chip.axes or 2} sizes; such as {KNOWN[found[1]]}')
  return Topology(name, chip, sizes)


def coordinates(devices: Sequence[Any]) -> np.ndarray:
  """Of the chips of jax's devices, [devices, axes]."""
  return np.array([device.coords for device in devices])
