"""Where a model's activations lie on a mesh, where one is set (`jax.set_mesh`); else nothing here does anything."""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from gpt_jax.types import Layout

ROWS, SEQUENCE, HEADS = ('data', 'fsdp'), ('sequence',), ('tensor',)
"""Axes of a mesh that rows of a batch lie along, tokens of a row, and heads; as sharding.AXES names them."""


def along_sequence(length: int) -> bool:
  """Whether rows of so many tokens are cut over devices."""
  return _parts(SEQUENCE) > 1 and length % _parts(SEQUENCE) == 0


def spread(x: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
  """Hidden states of its own rows on each device, and where rows are cut, of its part of them.

  Else XLA has them follow the embedding table, which may lie in parts of D: each device would have all rows.
  """
  rows, part = _dividing(ROWS, x.shape[0]), SEQUENCE if along_sequence(x.shape[1]) else None
  return x if rows is None and part is None else jax.lax.with_sharding_constraint(x, P(rows, part))


def each_its_own(
  attend: Callable[..., Float[Array, 'B T N H']],
  query: Float[Array, 'B T N H'],
  key: Float[Array, 'B S K H'],
  value: Float[Array, 'B S K H'],
  queries: Layout,
  keys: Layout,
  cut: bool = False,
) -> Float[Array, 'B T N H']:
  """Attention of each device's rows and heads by itself, as XLA cannot cut a kernel.

  `cut`: of its rows and its part of each, whose queries see the keys of whole rows, which are gathered; heads are left
  to XLA, as what they do may depend on their number.
  """
  rows, heads = _dividing(ROWS, query.shape[0]), None if cut else _dividing(HEADS, key.shape[2])
  part = SEQUENCE if cut else None
  names = {axis for axes in (rows, heads, part) for axis in axes or ()}
  if not names:
    return attend(query, key, value, queries, keys)
  ours, whole = P(rows, part, heads), P(rows, None, heads)
  specs = (ours, whole, whole, P(rows, part), P(rows))
  if not cut:  # a kernel is no device's that another axis, even of one device, leaves to XLA
    names = set(jax.sharding.get_abstract_mesh().axis_names)
  mapped: Any = jax.shard_map(attend, in_specs=specs, out_specs=ours, axis_names=names, check_vma=False)
  return mapped(query, key, value, queries, keys)


def _parts(axes: tuple[str, ...]) -> int:
  shape = jax.sharding.get_abstract_mesh().shape
  return math.prod(shape.get(axis, 1) for axis in axes)


def _dividing(axes: tuple[str, ...], size: int) -> tuple[str, ...] | None:
  """The axes that the mesh has, if they divide a dimension; else it stays whole."""
  known = tuple(axis for axis in axes if axis in jax.sharding.get_abstract_mesh().shape)
  return known if known and size % _parts(known) == 0 else None
