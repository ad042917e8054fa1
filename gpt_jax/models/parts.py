"""Parts by name, so that a configuration of plain data can say any of them: 'rotary(theta=1e5)', 'causal | prefix'."""

import ast
from collections.abc import Callable, Mapping
import dataclasses
import difflib
import functools
from typing import Any

from flax import linen as nn
from gpt_jax.models import attention, initialization, layers, masks, positions, residual
from gpt_jax.models.families import FAMILIES
from gpt_jax.models.transformer import REMAT, TransformerConfig
from gpt_jax.types import UserError
import jax.numpy as jnp

MASKS = {'causal': masks.Causal, 'prefix': masks.Prefix, 'band': masks.Band}
SCALINGS = {
  'linear': positions.LinearScaling, 'ntk': positions.NtkScaling, 'llama3': positions.Llama3Scaling,
}  # fmt: skip

PARTS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
  'residual': {'pre': residual.PreNorm, 'post': residual.PostNorm, 'parallel': residual.Parallel},
  'norm': {
    'layer': functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False),
    'rms': functools.partial(nn.RMSNorm, epsilon=1e-5),
  },
  'mlp': {
    'relu': functools.partial(layers.Mlp, activation=nn.relu),
    'gelu': functools.partial(layers.Mlp, activation=nn.gelu),
    'gelu_exact': functools.partial(layers.Mlp, activation=layers.gelu_exact),
    'swiglu': functools.partial(layers.GatedMlp, activation=nn.silu),
    'geglu': functools.partial(layers.GatedMlp, activation=nn.gelu),
  },
  'positions': {'learned': positions.Learned, 'learned_2d': positions.Learned2D},
  'rotation': {'rotary': positions.Rotary, 'rotary_2d': positions.Rotary2D, **SCALINGS},
  'score_bias': {'alibi': positions.Alibi},
  'attention': {'dense': attention.Dense, 'banded': attention.Banded, **MASKS},
  'init': {
    'normal': initialization.Normal, 'scaled_normal': initialization.ScaledNormal, 'xavier': initialization.Xavier,
  },
}  # fmt: skip
"""For each field of TransformerConfig that holds a part: names, and what makes it of its arguments."""


def part(field: str, text: str) -> Any:
  """The part that `text` writes: NAME, NAME(arguments), masks joined by | and &, or for attention several by commas.

  Raises:
    UserError: the text is not of this form, or names no part of the field.
  """
  table = PARTS[field]

  def build(node: ast.expr) -> Any:
    match node:
      case ast.Constant(value):
        return value
      case ast.UnaryOp(ast.USub(), operand):
        return -build(operand)
      case ast.Name(name):
        return named(name)()
      case ast.Call(ast.Name(name), arguments, keywords):
        return named(name)(*map(build, arguments), **{str(k.arg): build(k.value) for k in keywords})
      case ast.BinOp(left, ast.BitOr(), right):
        return build(left) | build(right)
      case ast.BinOp(left, ast.BitAnd(), right):
        return build(left) & build(right)
      case ast.Tuple(elements):
        return tuple(map(build, elements))
    raise UserError(f'config.model.{field} = {text!r}: {ast.unparse(node)!r} is not a part; write NAME or NAME(number)')

  def named(name: str) -> Callable[..., Any]:
    if name not in table:
      raise UserError(f'config.model.{field} = {text!r}: no part is named {name!r}; {nearest(name, table)}')
    return table[name]

  try:
    built = build(ast.parse(text.strip(), mode='eval').body)
  except (SyntaxError, TypeError, ValueError) as error:
    raise UserError(f'config.model.{field} = {text!r}: {error}; write NAME or NAME(argument, ...)') from error
  return built if field != 'attention' or isinstance(built, tuple) else (built,)


def nearest(name: str, among: Mapping[str, Any]) -> str:
  """A hint for a misspelt name."""
  close = difflib.get_close_matches(name, among, n=1, cutoff=0.5)
  return f'did you mean {close[0]!r}?' if close else f'known are {", ".join(sorted(among))}'


def from_config(model: Mapping[str, Any]) -> TransformerConfig:
  """The family that `model['family']` names, with fields replaced by those of `model` that are not None.

  'none' takes a part away.

  Raises:
    UserError: an unknown family, field or part, or numbers that do not fit.
  """
  fields = {name: value for name, value in model.items() if value is not None}
  family = fields.pop('family')
  if family not in FAMILIES:
    raise UserError(f'config.model.family = {family!r} is unknown; {nearest(family, FAMILIES)}')
  known = {field.name: None for field in dataclasses.fields(TransformerConfig)}
  for name, value in fields.items():
    if name not in known:
      raise UserError(f'config.model.{name} is unknown; {nearest(name, known)}')
    if name in PARTS:
      fields[name] = None if value == 'none' else part(name, value)
  if fields.get('remat') == 'none':
    fields['remat'] = None
  if fields.get('remat', None) not in (None, *REMAT):
    raise UserError(f'config.model.remat = {fields["remat"]!r} is unknown; {nearest(fields["remat"], REMAT)}')
  try:
    jnp.dtype(fields.get('dtype', 'float32'))
    return dataclasses.replace(FAMILIES[family], **fields)
  except (TypeError, ValueError) as error:
    raise UserError(f'config.model: {error}') from error
