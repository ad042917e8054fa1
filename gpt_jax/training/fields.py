"""Fields of a config."""

from collections.abc import Mapping
from typing import Any

from gpt_jax.names import nearest
from gpt_jax.types import UserError


def complete(room: str, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
  """`config` over `defaults`, whose names are all that there are."""
  for name in config:
    if name not in defaults:
      raise UserError(f'{room}.{name} is no field; {nearest(name, defaults)}')
  return {**defaults, **config}


def flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Nested fields by dotted name."""
  fields: dict[str, Any] = {}
  for name, value in config.items():
    fields.update(flat(value, f'{prefix}{name}.') if isinstance(value, Mapping) else {prefix + name: value})
  return fields
