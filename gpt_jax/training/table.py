"""A table of parameters."""

import jax
from jax.tree_util import keystr

from gpt_jax.types import Params


def parameter_table(params: Params) -> str:
  """A line for each parameter: path, shape, count; and the total. `params` are arrays or their shapes."""
  rows = [
    (keystr(path, simple=True, separator='/'), ' x '.join(map(str, leaf.shape)), f'{leaf.size:,}')
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  ]
  rows.append(('total', '', f'{sum(leaf.size for leaf in jax.tree.leaves(params)):,}'))
  path, shape, count = (max(map(len, column)) for column in zip(*rows, strict=True))
  return '\n'.join(f'{row[0]:{path}}  {row[1]:{shape}}  {row[2]:>{count}}' for row in rows)
