"""Parts by name, so that a configuration of plain data can say any of them: 'rotary(theta=1e5)', 'causal | prefix'."""

import ast
from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from gpt_jax.models import attention, initialization, layers, masks, positions, quantization, residual
from gpt_jax.models.families import FAMILIES
from gpt_jax.models.transformer import REMAT, TransformerConfig
from gpt_jax.names import choose, nearest
from gpt_jax.types import UserError

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
  'rotation': {'rotary': positions.Rotary, 'rotary_2d': positions.Rotary2D},
  'score_bias': {'alibi': positions.Alibi, 'falcon_alibi': positions.FalconAlibi},
  'attention': {'dense': attention.Dense, 'banded': attention.Banded},
  'init': {
    'normal': initialization.Normal, 'scaled_normal': initialization.ScaledNormal, 'xavier': initialization.Xavier,
  },
  'quantization': {'int8': quantization.Int8, 'int4': quantization.Int4},
}  # fmt: skip
"""For each field of TransformerConfig that holds a part: names, and what makes it of its arguments."""

ARGUMENTS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
  'rotation': {
    'linear': positions.LinearScaling, 'ntk': positions.NtkScaling, 'llama3': positions.Llama3Scaling,
  },
  'attention': {'causal': masks.Causal, 'prefix': masks.Prefix, 'band': masks.Band},
}  # fmt: skip
"""What stands inside a part's brackets, by name."""


def part(field: str, text: str, named_by: str | None = None) -> Any:
  """The part that `text` writes: NAME, NAME(arguments), masks joined by | and &, or for attention several by commas.

  Messages call the field `named_by`; None: config.model.FIELD.

  Raises:
    UserError: the text is not of this form, or names no part of the field.
  """
  table = {**PARTS[field], **ARGUMENTS.get(field, {})}
  given = f'{named_by or f"config.model.{field}"} = {text!r}'
  refusal = lambda node: UserError(f'{given}: {ast.unparse(node)!r} is not a part; write NAME or NAME(number)')

  def whole(node: ast.expr) -> Any:
    match node:
      case ast.Name(name) | ast.Call(ast.Name(name)) if name not in ARGUMENTS.get(field, {}):
        return build(node)
    raise refusal(node)

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
    raise refusal(node)

  def named(name: str) -> Callable[..., Any]:
    if name not in table:
      raise UserError(f'{given}: no part is named {name!r}; {nearest(name, table)}')
    return table[name]

  try:
    tree = ast.parse(text.strip(), mode='eval').body
    if field != 'attention':
      return whole(tree)
    return tuple(map(whole, tree.elts)) if isinstance(tree, ast.Tuple) and tree.elts else (whole(tree),)
  except (SyntaxError, TypeError, ValueError) as error:
    raise UserError(f'{given}: {error}; write NAME or NAME(argument, ...)') from error


def from_config(model: Mapping[str, Any]) -> TransformerConfig:
  """The family that `model['family']` names, with fields replaced by those of `model` that are not None.

  'none' takes away a part that a model can do without.

  Raises:
    UserError: an unknown family, field or part, or numbers that do not fit.
  """
  fields = {name: value for name, value in model.items() if value is not None}
  family = fields.pop('family')
  replaced = choose('config.model.family', family, FAMILIES)
  known = {field.name: field.default for field in dataclasses.fields(TransformerConfig)}
  for name, value in fields.items():
    if name not in known:
      raise UserError(f'config.model.{name} is unknown; {nearest(name, known)}')
    if name in PARTS:
      fields[name] = None if value == 'none' and known[name] is None else part(name, value)
  if fields.get('remat') == 'none':
    fields['remat'] = None
  if fields.get('remat') not in (None, *REMAT):
    raise UserError(f'config.model.remat = {fields["remat"]!r} is unknown; {nearest(fields["remat"], REMAT)}')
  try:
    jnp.dtype(fields.get('dtype', 'float32'))
    return dataclasses.replace(replaced, **fields)
  except (TypeError, ValueError) as error:
    raise UserError(f'config.model: {error}') from error
