"""Parts by name, so that a configuration of plain data can say any of them: 'rotary(theta=1e5)', 'causal | prefix'."""

import ast
from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from gpt_jax.models import attention, deepnorm, initialization, layers, lora, masks, positions, quantization, residual
from gpt_jax.models.families import FAMILIES
from gpt_jax.models.kernels import KERNELS
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
    'geglu_exact': functools.partial(layers.GatedMlp, activation=layers.gelu_exact),
  },
  'positions': {'learned': positions.Learned, 'learned_2d': positions.Learned2D},
  'rotation': {'rotary': positions.Rotary, 'rotary_2d': positions.Rotary2D},
  'score_bias': {'alibi': positions.Alibi, 'falcon_alibi': positions.FalconAlibi},
  'attention': {
    'dense': attention.Dense, 'banded': attention.Banded, 'strided': attention.Strided, 'fixed': attention.Fixed,
  },
  'init': {
    'normal': initialization.Normal, 'scaled_normal': initialization.ScaledNormal, 'xavier': initialization.Xavier,
  },
  'quantization': {'int8': quantization.Int8, 'int4': quantization.Int4},
  'lora': {'lora': lora.Lora},
}  # fmt: skip
"""For each field of TransformerConfig that holds a part: names, and what makes it of its arguments."""

ARGUMENTS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
  'rotation': {
    'linear': positions.LinearScaling, 'ntk': positions.NtkScaling, 'llama3': positions.Llama3Scaling,
    'yarn': positions.YarnScaling,
  },
  'attention': {'causal': masks.Causal, 'prefix': masks.Prefix, 'band': masks.Band},
  'residual': {'deepnet': deepnorm.DeepNet, 'glm': deepnorm.Glm},
  'init': {'deepnet': deepnorm.DeepNet, 'glm': deepnorm.Glm},
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


def from_config(model: Mapping[str, Any], start: TransformerConfig | None = None) -> TransformerConfig:
  """The family that `model['family']` names, with fields replaced by those of `model` that are not None.

  `start`, where it is given, stands in place of the family. 'none' takes away a part that a model can do without.

  Raises:
    UserError: an unknown family, field or part, or numbers that do not fit.
  """
  fields = {name: value for name, value in model.items() if value is not None}
  family = fields.pop('family', None)
  replaced = choose('config.model.family', family, FAMILIES) if start is None else start
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
  choose('config.model.attention_kernel', fields.get('attention_kernel', 'auto'), dict.fromkeys(KERNELS))
  try:
    jnp.dtype(fields.get('dtype', 'float32'))
    return dataclasses.replace(replaced, **fields)
  except (TypeError, ValueError) as error:
    raise UserError(f'config.model: {error}') from error


def to_config(config: TransformerConfig) -> dict[str, Any]:
  """Fields from which `from_config` makes this very model: plain data, for a file.

  Raises:
    UserError: a part that has no name.
  """
  fields: dict[str, Any] = {'family': 'gpt2_small'}  # all of it is replaced
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if value is None:
      written = 'none' if field.name in (*PARTS, 'remat') else None
    elif field.name == 'attention':
      written = ', '.join(_text(field.name, pattern) for pattern in value)
    else:
      written = _text(field.name, value) if field.name in PARTS else value
    fields[field.name] = written
  if from_config(fields) != config:
    raise UserError('the parts of this model have no names that make it again')
  return fields


def kernels_of(config: TransformerConfig, rows: int, length: int) -> list[str]:
  """For each attention pattern of a model, which kernel computes it for `rows` rows of `length` tokens, and why."""
  query, key = (
    jax.ShapeDtypeStruct((rows, length, heads, config.head_width), config.dtype)
    for heads in (config.num_heads, config.num_kv_heads)
  )
  drop = (lambda weights: weights) if config.attention_dropout else None
  told = []
  for pattern in dict.fromkeys(config.attention):
    kernel, why = pattern.job(query, key, config.score_bias, drop).choose(config.attention_kernel)
    told.append(f'{_text("attention", pattern).removesuffix("()")}: {kernel} ({why})')
  return told


def _text(field: str, value: Any) -> str:
  """What `part` reads as this value."""
  if isinstance(value, masks.Both | masks.Either):
    sign = '&' if isinstance(value, masks.Both) else '|'
    return f'({_text(field, value.left)} {sign} {_text(field, value.right)})'
  if not dataclasses.is_dataclass(value):
    return repr(value)
  for name, make in {**PARTS[field], **ARGUMENTS.get(field, {})}.items():
    fixed = make.keywords if isinstance(make, functools.partial) else {}
    if type(value) is not (make.func if isinstance(make, functools.partial) else make):
      continue
    given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init and f.name not in LINEN}
    defaults = {f.name: fixed.get(f.name, f.default) for f in dataclasses.fields(value)}
    differing = {name: inner for name, inner in given.items() if inner != defaults[name]}
    if not any(callable(inner) and not dataclasses.is_dataclass(inner) for inner in differing.values()):
      return f'{name}({", ".join(f"{key}={_text(field, inner)}" for key, inner in differing.items())})'
  raise UserError(f'config.model.{field}: a {type(value).__name__} of these fields has no name')


LINEN = ('parent', 'name')
"""What every linen module has besides its own fields."""
