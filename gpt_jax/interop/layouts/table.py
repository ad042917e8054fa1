"""What a layout is made of: a table of which tensor holds which parameter, and what several layouts share."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

from gpt_jax.interop.forms import Form, Same, Transposed
from gpt_jax.models.parts import PARTS
from gpt_jax.models.positions import LinearScaling, Llama3Scaling, Rotary, Scaling, YarnScaling
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.types import UserError

Json = Mapping[str, Any]

HEAD = 'lm_head.weight'

# What a config has beyond the model it describes: how it is made, trained and run.
_LOOSE = (
  'init', 'embedding_dropout', 'attention_dropout', 'residual_dropout', 'dtype', 'quantization', 'remat', 'stacked',
  'attention_kernel', 'embedding_gradient',
)  # fmt: skip


class Entry(NamedTuple):
  """A tensor of theirs, and the parameters of ours that it holds; {} stands for the number of a layer."""

  theirs: str
  ours: tuple[str, ...]
  form: Form
  last: str | None = None
  """Where a layer of ours has what stands in the next one of theirs: the tensor that the last layer has."""

  def name(self, layer: int | None, num_layers: int) -> str:
    """Of the tensor that holds what this layer of ours has; None: what no layer has."""
    if self.last is None or layer is None:
      return self.theirs.format(layer)
    return self.last if layer == num_layers - 1 else self.theirs.format(layer + 1)


@dataclasses.dataclass(frozen=True)
class Layout:
  """A kind of model of another library: `read` and `write` are of its configuration, `entries` of its tensors.

  `write` gives what `read` needs to give the same config again; a config for which it does not has no such layout.
  """

  architecture: str
  """Its name there."""
  read: Callable[[Json], TransformerConfig]
  write: Callable[[TransformerConfig], dict[str, Any]]
  entries: Callable[[TransformerConfig], list[Entry]]
  ignored: str = r'$^'
  """Tensors that are no parameters, as a regex: masks and tables of angles that old files hold."""
  exact: str = r'$^'
  """Tensors that are written in the dtype they have, as a regex, whatever that of the others."""
  context: str = 'max_position_embeddings'
  """The field of the configuration that has the length, in tokens, that the model was made for."""
  head: str = HEAD
  """The tensor of the unembedding, which may stand there again where it is the embedding."""
  mark: str | None = None
  """A field of the configuration that others of the same model_type do not have."""

  def says(self, config: TransformerConfig) -> bool:
    """Whether its configuration can say a model: read again, it is the same model."""
    try:
      again = self.read(self.write(config))
    except (UserError, ValueError, TypeError, AttributeError, KeyError):
      return False
    loose = {name: getattr(again, name) for name in _LOOSE}

    def plain(config: TransformerConfig) -> TransformerConfig:
      qkv_bias = config.use_bias if config.qkv_bias is None else config.qkv_bias
      positions = config.positions and config.positions.copy(stddev=0.0)
      return dataclasses.replace(config, head_dim=config.head_width, qkv_bias=qkv_bias, positions=positions, **loose)

    return plain(again) == plain(config)


# ---- what several have in common -----------------------------------------------------------------------------------

# Their names of activations, and our names of the feed-forward networks that have them.
PLAIN = {'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'gelu': 'gelu_exact', 'relu': 'relu'}
GATED = {'silu': 'swiglu', 'gelu_pytorch_tanh': 'geglu'}


def feed_forward(activations: Mapping[str, str], field: str, name: str, hidden: int) -> Any:
  if name not in activations:
    raise UserError(f'config.json: {field} = {name!r} is not supported; known: {", ".join(activations)}')
  return PARTS['mlp'][activations[name]](hidden)


def activation_name(activations: Mapping[str, str], config: TransformerConfig) -> str:
  return next(
    (theirs for theirs, ours in activations.items() if PARTS['mlp'][ours](config.mlp.hidden) == config.mlp), ''
  )


def only(config: Json, **needed: Any) -> None:
  """Refuses a config whose fields, where it has them, are others than those we can compute."""
  for field, value in needed.items():
    if config.get(field, value) != value:
      raise UserError(f'config.json: {field} = {config[field]!r} is not supported, only {value!r}')


ROPE: Mapping[str, tuple[type[Scaling], Mapping[str, str]]] = {
  'linear': (LinearScaling, {'factor': 'factor'}),
  'llama3': (
    Llama3Scaling,
    {
      'factor': 'factor',
      'low_frequency_factor': 'low_freq_factor',
      'high_frequency_factor': 'high_freq_factor',
      'original_length': 'original_max_position_embeddings',
    },
  ),
  'yarn': (
    YarnScaling,
    {
      'factor': 'factor',
      'original_length': 'original_max_position_embeddings',
      'fast': 'beta_fast',
      'slow': 'beta_slow',
      'attention_factor': 'attention_factor',
    },
  ),
}
"""By rope_type, our scaling, and for each field of it the name of theirs."""

_OPTIONAL = ('beta_fast', 'beta_slow', 'attention_factor')


def rotary(config: Json, fraction: float = 1.0) -> Rotary:
  """transformers 5 puts all in rope_parameters, 4 in rope_theta and rope_scaling."""
  rope = config.get('rope_parameters') or config.get('rope_scaling') or {}
  kind = rope.get('rope_type', rope.get('type', 'default'))
  scaling = None
  if kind in ROPE:
    only(rope, truncate=True, mscale=None, mscale_all_dim=None)
    make, names = ROPE[kind]
    scaling = make(**{ours: rope[name] for ours, name in names.items() if name not in _OPTIONAL or rope.get(name)})
  elif kind != 'default':
    raise UserError(f'config.json: rope_type = {kind!r} is not supported; known: default, {", ".join(ROPE)}')
  theta: float = rope.get('rope_theta') or config.get('rope_theta') or 10_000.0
  return Rotary(float(theta), fraction, scaling)


def rope_fields(config: TransformerConfig) -> dict[str, Any]:
  if not isinstance(config.rotation, Rotary):
    return {}
  scaling, written = config.rotation.scaling, None
  for kind, (made, names) in ROPE.items():
    if isinstance(scaling, made):
      values = {name: getattr(scaling, ours) for ours, name in names.items()}
      written = {'rope_type': kind, **{name: value for name, value in values.items() if value is not None}}
  return {'rope_theta': config.rotation.theta, 'rope_scaling': written}


def linear(theirs: str, *ours: str, bias: bool, form: Form = Transposed()) -> list[Entry]:
  """A linear layer of theirs, which may be several of ours, and its bias."""
  kinds = {'weight': 'kernel', 'bias': 'bias'} if bias else {'weight': 'kernel'}
  return [Entry(f'{theirs}.{a}', tuple(f'{part}/{b}' for part in ours), form) for a, b in kinds.items()]


def layer_norm(theirs: str, ours: str, last: str | None = None) -> list[Entry]:
  kinds = (('weight', 'scale'), ('bias', 'bias'))
  return [Entry(f'{theirs}.{a}', (f'{ours}/{b}',), Same(), last and f'{last}.{a}') for a, b in kinds]


def head(config: TransformerConfig, theirs: str = HEAD) -> list[Entry]:
  return [] if config.tie_embeddings else [Entry(theirs, ('unembed/embedding',), Same())]


QKV = ('attention/query', 'attention/key', 'attention/value')
EMBEDDING = ('transformer/embed/embedding',)
POSITIONS = ('transformer/positions/table',)
