"""Where arrays live: a mesh, and rules from parameter paths to its axes."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import math
import re
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import keystr
import numpy as np

from gpt_jax.types import Batch, UserError

AXES = ('data', 'fsdp', 'tensor', 'sequence')

ROWS = ('data', 'fsdp')
"""The axes that a batch's rows are spread over."""

Rules = tuple[tuple[str, P], ...]

# The first pattern found in a parameter's path decides. A spec is of the trailing dimensions, so a leading axis of
# layers stays whole. There is no catch-all: a new parameter needs a thought.
RULES: Rules = (
  (r'embed/embedding$', P('tensor', 'fsdp')),  # [V, D]
  (r'positions/\w*table$', P(None, 'fsdp')),  # [T, D]
  # Quantised kernels, all [O, I], [O, I / 2] or [O, groups]. Heads and their widths are one axis in them: more devices
  # than heads may share it.
  (r'(attention/(query|key|value)|mlp/(gate|up))/kernel/(values|nibbles|multiples|scale)$', P('tensor', 'fsdp')),
  (r'(attention/out|mlp/down)/kernel/(values|nibbles|multiples|scale)$', P('fsdp', 'tensor')),
  (r'(attention/(query|key|value)|mlp/(gate|up))/lora_a$', P('fsdp', None)),  # [I, rank]
  (r'(attention/(query|key|value)|mlp/(gate|up))/lora_b$', P(None, 'tensor')),  # [rank, O]
  (r'(attention/out|mlp/down)/lora_a$', P('tensor', None)),
  (r'(attention/out|mlp/down)/lora_b$', P(None, 'fsdp')),
  (r'attention/(query|key|value)/kernel$', P('fsdp', 'tensor', None)),  # [D, N, H]
  (r'attention/(query|key|value)/bias$', P('tensor', None)),  # [N, H]
  (r'attention/out/kernel$', P('tensor', None, 'fsdp')),  # [N, H, D]
  (r'mlp/(gate|up)/kernel$', P('fsdp', 'tensor')),  # [D, F]
  (r'mlp/(gate|up)/bias$', P('tensor')),  # [F]
  (r'mlp/down/kernel$', P('tensor', 'fsdp')),  # [F, D]
  (r'head/kernel$', P('fsdp', 'tensor')),  # [D, V]
  (r'head/bias$', P('tensor')),  # [V]
  (r'reward_kernel$', P('fsdp')),  # [D]
  (r'reward_bias$', P()),
  (r'residual_kernel$', P(None, 'fsdp', 'tensor')),  # [M, D, D], of Medusa's heads
  (r'residual_bias$', P(None, 'tensor')),  # [M, D]
  (r'unembed_table$', P(None, 'tensor', 'fsdp')),  # [M, V, D]
  (r'(attention/out|mlp/down)/bias$', P()),  # [D]
  (r'norm\w*/(scale|bias)$', P()),  # [D] or [H]
)


def mesh_shape(sizes: Mapping[str, int], count: int) -> tuple[int, ...]:
  """The sizes of all of AXES, for so many devices; one may be -1, whatever is left of them; a missing one is 1.

  Raises:
    UserError: they do not multiply to the devices.
  """
  for name in sizes:
    if name not in AXES:
      raise UserError(f'mesh.{name} is no axis; known: {", ".join(AXES)}')
  shape = [sizes.get(axis, 1) for axis in AXES]
  given = ' x '.join(f'{axis}={size}' for axis, size in zip(AXES, shape, strict=True) if size != 1) or 'data=1'
  if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
    raise UserError(f'mesh sizes {given}: each must be positive, and at most one -1')
  known = math.prod(size for size in shape if size != -1)
  if -1 in shape and count % known == 0:
    shape[shape.index(-1)] = count // known
  if math.prod(shape) != count:
    raise UserError(f'mesh sizes {given} do not multiply to the {count} devices at hand; set one of them to -1')
  return tuple(shape)


def make_mesh(sizes: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
  """A mesh with all of AXES; see `mesh_shape`.

  Slices, between which there is only a slow network, are parts of the first of AXES that they divide: of `data`, which
  exchanges least, then of `fsdp`.
  """
  devices = jax.devices() if devices is None else devices
  grid = _grid(mesh_shape(sizes, len(devices)), devices)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _grid(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
  """The devices in this shape, neighbours along its axes near one another. An axis of a torus may be shared by two."""
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  across = next((axis for axis, size in enumerate(shape) if size % slices == 0), None)
  if slices == 1 or across is None:
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  outer = tuple(slices if axis == across else 1 for axis in range(len(shape)))
  inner = tuple(size // count for size, count in zip(shape, outer, strict=True))
  return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)


def spec_of(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: Rules = RULES) -> P:
  """The spec of a parameter by its path, right-aligned to its shape.

  A mesh axis that doesn't divide its dimension (a vocabulary of 65 letters) is dropped: that dimension stays whole.
  """
  spec = next((spec for pattern, spec in rules if re.search(pattern, path)), None)
  if spec is None:
    raise UserError(f'no sharding rule for parameter {path}; add its path to sharding.RULES')
  if len(spec) > len(shape):
    raise UserError(f'the sharding rule {spec} of parameter {path} has more dimensions than its shape {shape}')
  axes = (None,) * (len(shape) - len(spec)) + tuple(spec)
  return P(*(axis if size % _size(mesh, axis) == 0 else None for axis, size in zip(axes, shape, strict=True)))


@dataclasses.dataclass(frozen=True)
class Placement:
  """A mesh and the rules for what lives where on it. A run takes one."""

  mesh: Mesh
  rules: Rules = RULES

  def params(self, params: Any) -> Any:
    """A sharding for each parameter; `params` are arrays or their shapes."""
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: NamedSharding(self.mesh, spec_of(_name(path), leaf.shape, self.mesh, self.rules)), params
    )

  def state(self, state: Any) -> Any:
    """A sharding for each array of a TrainState.

    An optimiser's moment, whose path ends like its parameter's and has its shape, lives beside it. All else, counts
    and Adafactor's factors, is small and everywhere.
    """
    shapes, shardings = (
      {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
      for tree in (state.params, self.params(state.params))
    )

    def place(path, leaf):
      ends = (_name(path[start:]) for start in range(len(path)))
      name = next((end for end in ends if end in shapes and shapes[end].shape == leaf.shape), None)
      return shardings[name] if name else NamedSharding(self.mesh, P())

    return jax.tree_util.tree_map_with_path(place, state)

  @functools.cached_property  # asked for every batch
  def share(self) -> dict[str, int]:
    """Which part of a batch's rows this process reads: `host`, of `hosts` parts.

    Processes whose devices hold the same rows, as they share an axis of another kind, read the same part.
    """
    held: dict[int, set[tuple[int, ...]]] = {}
    for place, device in np.ndenumerate(self.mesh.devices):
      held.setdefault(device.process_index, set()).add(place[: len(ROWS)])  # they are the first of AXES
    shares = sorted({tuple(sorted(rows)) for rows in held.values()})
    if len(set(map(len, shares))) > 1 or sum(map(len, shares)) != _size(self.mesh, ROWS):
      raise UserError(
        f'mesh: {jax.process_count()} processes can not share the rows; make data x fsdp a multiple of it'
      )
    return {'host': shares.index(tuple(sorted(held[jax.process_index()]))), 'hosts': len(shares)}

  def batch(self, batch: Batch) -> Batch:
    """The rows that this process reads, spread over `data` and `fsdp`; jax's own arrays stay where they are."""
    local = [leaf for leaf in jax.tree.leaves(batch) if not isinstance(leaf, jax.Array)]
    if not local:
      return batch
    rows = len(local[0]) * self.share['hosts']
    parts = _size(self.mesh, ROWS)
    if rows % parts:
      raise UserError(f'a batch of {rows} rows does not divide over data x fsdp = {parts} devices; pick a multiple')
    sharding = NamedSharding(self.mesh, P(ROWS))
    place = lambda array: jax.make_array_from_process_local_data(sharding, array, (rows, *array.shape[1:]))
    return jax.tree.map(lambda array: array if isinstance(array, jax.Array) else place(array), batch)


def _size(mesh: Mesh | AbstractMesh, axes: str | tuple[str, ...] | None) -> int:
  return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))


def _name(path: Any) -> str:
  return keystr(path, simple=True, separator='/')
