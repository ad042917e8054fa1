"""LLaMA and GPT-2 as ggml has them: what the metadata of GGUF files says, and which tensor is which parameter.

Two things that a configuration says elsewhere are said by tensors here. Where output.weight is absent the embeddings
are the unembedding, so that `tie_embeddings` is not for these layouts to say; and rope_freqs.weight has a divisor for
each rotated pair: `read` and `write` have it among the metadata, as a list of numbers.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import numpy as np

from gpt_jax.interop.forms import Interleaved, Same, Transposed
from gpt_jax.interop.layouts.table import (
  EMBEDDING,
  POSITIONS,
  QKV,
  Entry,
  Json,
  Layout,
  head,
  layer_norm,
  linear,
)
from gpt_jax.models.initialization import Normal
from gpt_jax.models.parts import PARTS
from gpt_jax.models.positions import Learned, LinearScaling, PairScaling, Rotary, Scaling
from gpt_jax.models.residual import PreNorm
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.types import UserError

DIVISORS = 'rope_freqs.weight'
OUTPUT = 'output.weight'

# What a number may be at most: far beyond every model, but the sizes of its arrays can still be computed.
MOST = {
  'vocab_size': 2**24, 'context_length': 2**31, 'block_count': 2**12, 'embedding_length': 2**20,
  'feed_forward_length': 2**20, 'attention.head_count': 2**12, 'attention.head_count_kv': 2**12,
  'attention.key_length': 2**12,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Metadata:
  """The fields of one architecture, checked as they are taken."""

  architecture: str
  values: Json

  def get(self, name: str, default: Any = None) -> Any:
    value = self.values.get(f'{self.architecture}.{name}', default)
    if value is None:
      raise UserError(f'has no {self.architecture}.{name}')
    return value

  def count(self, name: str, default: int | None = None) -> int:
    value = self.get(name, default)
    if type(value) is not int or not 1 <= value <= MOST[name]:
      raise self.refusal(name, f'is not a whole number from 1 to {MOST[name]:,}')
    return value

  def number(self, name: str, default: float | None = None) -> float:
    """A positive number, as the shortest decimal of its 32 bits: what was written as 1e-5 is 1e-5 again."""
    value = self.get(name, default)
    if type(value) not in (int, float) or not 2.0**-126 <= value <= 2.0**127:
      raise self.refusal(name, 'is not a positive number')
    return float(str(np.float32(value)))

  def only(self, needed: Json) -> None:
    """Refuses fields, where they are, that say another model than we can compute."""
    for name, value in needed.items():
      if self.get(name, value) != value:
        raise self.refusal(name, f'is not supported, only {value!r}')

  def refusal(self, name: str, why: str) -> UserError:
    return UserError(f'{self.architecture}.{name} = {self.get(name)!r:.40} {why}')

  @property
  def vocabulary(self) -> int:
    tokens = self.values.get('tokenizer.ggml.tokens')
    return self.count('vocab_size', len(tokens) if isinstance(tokens, list) else None)

  @property
  def shape(self) -> dict[str, Any]:
    """What both architectures have, the length they were made for at least no nonsense."""
    self.count('context_length', 1)
    return {
      'vocab_size': self.vocabulary, 'num_layers': self.count('block_count'),
      'model_dim': self.count('embedding_length'), 'num_heads': self.count('attention.head_count'),
    }  # fmt: skip


def _shape_fields(architecture: str, config: Any) -> dict[str, Any]:
  fields = {
    'vocab_size': config.vocab_size, 'block_count': config.num_layers, 'embedding_length': config.model_dim,
    'feed_forward_length': config.mlp.hidden, 'attention.head_count': config.num_heads,
  }  # fmt: skip
  return {f'{architecture}.{name}': value for name, value in fields.items()}


# ---- LLaMA ----------------------------------------------------------------------------------------------------------


def _llama(values: Json) -> TransformerConfig:
  metadata = _Metadata('llama', values)
  shape = metadata.shape
  head_dim = metadata.count('attention.key_length', shape['model_dim'] // shape['num_heads'])
  metadata.only({
    'attention.value_length': head_dim, 'rope.dimension_count': head_dim, 'rope.scaling.attn_factor': 1.0,
    'expert_count': 0, 'attention.causal': True, 'attention.clamp_kqv': 0.0, 'attention.max_alibi_bias': 0.0,
    'attention.sliding_window': 0,
  })  # fmt: skip
  if head_dim % 2:
    raise metadata.refusal('attention.key_length', 'is odd: a head is rotated pair by pair')
  norm = PARTS['norm']['rms'](epsilon=metadata.number('attention.layer_norm_rms_epsilon'))
  return TransformerConfig(
    **shape, num_kv_heads=metadata.count('attention.head_count_kv', shape['num_heads']), head_dim=head_dim,
    mlp=PARTS['mlp']['swiglu'](metadata.count('feed_forward_length')), residual=PreNorm(), norm=norm,
    rotation=Rotary(metadata.number('rope.freq_base', 10_000.0), scaling=_scaling(metadata, head_dim)),
    init=Normal(0.02), use_bias=False,
  )  # fmt: skip


def _scaling(metadata: _Metadata, head_dim: int) -> Scaling | None:
  # ggml takes a factor without a type as linear; old files call it scale_linear.
  factor = 'rope.scale_linear' if 'llama.rope.scale_linear' in metadata.values else 'rope.scaling.factor'
  linear = f'llama.{factor}' in metadata.values
  kind, divisors = metadata.get('rope.scaling.type', 'linear' if linear else 'none'), metadata.values.get(DIVISORS)
  if kind not in ('none', 'linear'):
    raise metadata.refusal('rope.scaling.type', "is not supported; known: 'none', 'linear'")
  if divisors is None:
    return LinearScaling(metadata.number(factor)) if kind == 'linear' else None
  if kind == 'linear' or len(divisors) != head_dim // 2 or not all(0 < number < math.inf for number in divisors):
    raise UserError(f'{DIVISORS} should be {head_dim // 2} positive numbers, and without llama.{factor}')
  return PairScaling(tuple(divisors))


def _llama_fields(config: Any) -> dict[str, Any]:
  width = config.head_width
  fields = {
    **_shape_fields('llama', config), 'llama.attention.head_count_kv': config.num_kv_heads,
    'llama.attention.key_length': width, 'llama.attention.value_length': width, 'llama.rope.dimension_count': width,
    'llama.rope.freq_base': config.rotation.theta, 'llama.attention.layer_norm_rms_epsilon': config.norm.epsilon,
  }  # fmt: skip
  if isinstance(config.rotation.scaling, LinearScaling):
    fields |= {'llama.rope.scaling.type': 'linear', 'llama.rope.scaling.factor': config.rotation.scaling.factor}
  if isinstance(config.rotation.scaling, PairScaling):
    fields[DIVISORS] = list(config.rotation.scaling.divisors)
  return fields


def by_pair(config: TransformerConfig) -> TransformerConfig:
  """The same model, its angles scaled by a divisor for each pair if by anything but one for all."""
  rotation = config.rotation
  if not isinstance(rotation, Rotary) or isinstance(rotation.scaling, LinearScaling | PairScaling | None):
    return config
  if rotation.scaling.magnitude != 1:
    raise UserError(
      'config.model.rotation: a GGUF file cannot say how YaRN makes queries and keys grow; save safetensors'
    )
  plain = dataclasses.replace(rotation, scaling=None)
  divisors = plain.frequencies(config.head_width) / rotation.frequencies(config.head_width)
  scaling = PairScaling(tuple(divisors.astype(np.float32).tolist()))
  return dataclasses.replace(config, rotation=dataclasses.replace(rotation, scaling=scaling))


def _llama_entries(config: TransformerConfig) -> list[Entry]:
  interleaved = Interleaved(Transposed(), config.head_width, config.head_width)
  linears = {'attn_v': 'attention/value', 'attn_output': 'attention/out', **FEED_FORWARD, 'ffn_gate': 'mlp/gate'}
  return [
    Entry('token_embd.weight', EMBEDDING, Same()),
    *linear('blk.{}.attn_q', 'attention/query', bias=False, form=interleaved),
    *linear('blk.{}.attn_k', 'attention/key', bias=False, form=interleaved),
    *(entry for theirs, ours in linears.items() for entry in linear(f'blk.{{}}.{theirs}', ours, bias=False)),
    *(Entry(f'{theirs}.weight', (f'{ours}/scale',), Same()) for theirs, ours in NORMS.items()),
    *head(config, OUTPUT),
  ]


FEED_FORWARD = {'ffn_up': 'mlp/up', 'ffn_down': 'mlp/down'}
NORMS = {
  'blk.{}.attn_norm': 'norm_attention', 'blk.{}.ffn_norm': 'norm_mlp', 'output_norm': 'transformer/norm_final',
}  # fmt: skip

llama = Layout(
  'llama',
  read=_llama,
  write=_llama_fields,
  entries=_llama_entries,
  ignored=f'^{DIVISORS}$',
  context='llama.context_length',
  head=OUTPUT,
)

# ---- GPT-2 ----------------------------------------------------------------------------------------------------------


def _gpt2(values: Json) -> TransformerConfig:
  metadata = _Metadata('gpt2', values)
  shape = metadata.shape
  return TransformerConfig(
    **shape, num_kv_heads=shape['num_heads'], mlp=PARTS['mlp']['gelu'](metadata.count('feed_forward_length')),
    residual=PreNorm(), norm=PARTS['norm']['layer'](epsilon=metadata.number('attention.layer_norm_epsilon')),
    positions=Learned(metadata.count('context_length')),
  )  # fmt: skip


def _gpt2_fields(config: Any) -> dict[str, Any]:
  return {
    **_shape_fields('gpt2', config), 'gpt2.context_length': config.positions.length,
    'gpt2.attention.layer_norm_epsilon': config.norm.epsilon,
  }  # fmt: skip


def _gpt2_entries(config: TransformerConfig) -> list[Entry]:
  linears = {'attn_output': 'attention/out', **FEED_FORWARD}
  return [
    Entry('token_embd.weight', EMBEDDING, Same()),
    Entry('position_embd.weight', POSITIONS, Same()),
    *linear('blk.{}.attn_qkv', *QKV, bias=True),
    *(entry for theirs, ours in linears.items() for entry in linear(f'blk.{{}}.{theirs}', ours, bias=True)),
    *(entry for theirs, ours in NORMS.items() for entry in layer_norm(theirs, ours)),
    *head(config, OUTPUT),
  ]


gpt2 = Layout('gpt2', read=_gpt2, write=_gpt2_fields, entries=_gpt2_entries, context='gpt2.context_length', head=OUTPUT)

LAYOUTS: Mapping[str, Layout] = {'llama': llama, 'gpt2': gpt2}
"""By general.architecture."""
