"""The Transformer: one definition, of which every GPT family is a choice of parts."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import operator
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gpt_jax.models.attention import Dense, Pattern
from gpt_jax.models.caches import SPARE, Cache, KeyValues
from gpt_jax.models.initialization import Initializer, ScaledNormal
from gpt_jax.models.layers import GatedMlp, Linear, Mlp
from gpt_jax.models.lora import Lora
from gpt_jax.models.native import held
from gpt_jax.models.positions import Alibi, Learned, Learned2D, Rotary, Rotary2D, Turn
from gpt_jax.models.quantization import Int4, Int8
from gpt_jax.models.residual import Norm, Parallel, PostNorm, PreNorm
from gpt_jax.models.spread import spread
from gpt_jax.types import Layout, Params, left_to_right

REMAT = {
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What the backward pass keeps of a layer, by name; a config's None keeps everything."""


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """A model: numbers, and parts that are values with behaviour."""

  vocab_size: int
  num_layers: int
  model_dim: int
  num_heads: int
  num_kv_heads: int
  """num_heads: multi-head; 1: multi-query; else grouped-query attention."""
  mlp: Mlp | GatedMlp
  head_dim: int | None = None
  """None: model_dim / num_heads."""
  residual: PreNorm | PostNorm | Parallel = PreNorm()
  norm: nn.LayerNorm | nn.RMSNorm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)
  positions: Learned | Learned2D | None = None
  rotation: Rotary | Rotary2D | None = None
  score_bias: Alibi | None = None
  attention: tuple[Pattern, ...] = (Dense(),)
  """One pattern a layer, taken in turn."""
  attention_kernel: str = 'auto'
  """How attention is computed: a name of kernels.KERNELS; see kernels.Job."""
  init: Callable[[str, int], Initializer] = ScaledNormal()
  use_bias: bool = True
  qkv_bias: bool | None = None
  """None: as use_bias."""
  tie_embeddings: bool = True
  logit_softcap: float | None = None
  """c tanh(logits / c), Gemma 2."""
  embedding_gradient: float = 1.0
  """The part of its gradient that the token embedding gets of what enters the layers (GLM-130B, section 3: 0.1)."""
  embedding_dropout: float = 0.0
  attention_dropout: float = 0.0
  residual_dropout: float = 0.0
  dtype: str = 'float32'
  """Of computation; parameters, softmax and loss are float32."""
  quantization: Int8 | Int4 | None = None
  """How the kernels of linear layers are stored; None: in float32. Not for training: integers have no gradient."""
  lora: Lora | None = None
  """What learns beside linear layers that are frozen."""
  remat: str | None = None
  """A name of REMAT: what the backward pass keeps."""
  stacked: bool = True
  """Layers are stacked and scanned, so that compile time does not grow with depth; see `unstack`."""

  def __post_init__(self) -> None:
    for field, divisor, dividend in (
      ('num_layers', len(self.attention), self.num_layers),
      ('num_heads', self.num_kv_heads, self.num_heads),
      ('model_dim', self.num_heads if self.head_dim is None else 1, self.model_dim),
    ):
      if min(divisor, dividend) < 1 or dividend % divisor:
        raise ValueError(f'{field} = {dividend} must be a multiple of {divisor}, and positive')

  @property
  def head_width(self) -> int:
    return self.head_dim or self.model_dim // self.num_heads

  @property
  def periods(self) -> int:
    """How often the tuple of attention patterns is gone through."""
    return self.num_layers // len(self.attention)

  @property
  def linear(self) -> Callable[..., Linear]:
    return functools.partial(
      Linear, use_bias=self.use_bias, kernel_init=self.init, num_layers=self.num_layers, dtype=self.dtype,
      quantization=self.quantization, lora=self.lora,
    )  # fmt: skip

  def evaluated(self) -> 'TransformerConfig':
    """The same model without dropout."""
    lora = self.lora and dataclasses.replace(self.lora, dropout=0.0)
    return dataclasses.replace(self, embedding_dropout=0.0, attention_dropout=0.0, residual_dropout=0.0, lora=lora)


def _dropout(rate: float) -> Callable[[jax.Array], jax.Array] | None:
  return nn.Dropout(rate, deterministic=False) if rate else None


class Attention(nn.Module):
  """Queries, keys and values of one layer, and what the pattern makes of them."""

  config: TransformerConfig
  pattern: Pattern

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T D'], queries: Layout, turn: Turn | None, keys: Layout, read: KeyValues | None, at: Any
  ) -> tuple[Float[Array, 'B T D'], KeyValues | None]:
    cfg = self.config
    linear = functools.partial(cfg.linear, use_bias=cfg.use_bias if cfg.qkv_bias is None else cfg.qkv_bias)
    query = linear((cfg.num_heads, cfg.head_width), name='query')(x)
    key = linear((cfg.num_kv_heads, cfg.head_width), name='key')(x)
    value = linear((cfg.num_kv_heads, cfg.head_width), name='value')(x)
    if turn is not None:
      query, key = turn(query), turn(key)
    if read is not None:
      read, key, value, keys = read.extended(at, key, value, queries, keys, self.pattern.kept)
    drop = _dropout(cfg.attention_dropout)
    out = self.pattern(query, key, value, queries, keys, cfg.score_bias, drop, cfg.attention_kernel)
    return cfg.linear(cfg.model_dim, contracted=2, name='out')(out), read


class Block(nn.Module):
  """Attention and a feed-forward network, joined as the residual part says."""

  config: TransformerConfig
  pattern: Pattern

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T D'], queries: Layout, turn: Turn | None, keys: Layout, read: KeyValues | None, at: Any
  ) -> tuple[Float[Array, 'B T D'], KeyValues | None]:
    cfg = self.config
    drop = _dropout(cfg.residual_dropout) or (lambda h: h)
    attend = Attention(cfg, self.pattern, name='attention')
    mlp = cfg.mlp.copy(name='mlp', linear=cfg.linear)

    def attended(h: jax.Array) -> jax.Array:
      nonlocal read
      h, read = attend(h, queries, turn, keys, read, at)
      return drop(h)

    x = cfg.residual.block(x, attended, lambda h: drop(mlp(h)), _norm(cfg), cfg.num_layers)
    return x, read


def _norm(config: TransformerConfig) -> Norm:
  return lambda name: config.norm.copy(name=name, dtype=config.dtype)


class Period(nn.Module):
  """One layer of each attention pattern: what is scanned over."""

  config: TransformerConfig

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B T D'],
    read: tuple[KeyValues, ...] | None,
    queries: Layout,
    turn: Any,
    keys: Layout,
    at: Any,
  ) -> tuple[Float[Array, 'B T D'], tuple[KeyValues | None, ...]]:
    written = []
    for i, pattern in enumerate(self.config.attention):
      block = Block(self.config, pattern, name=f'block_{i}')
      x, layer = block(x, queries, turn, keys, None if read is None else read[i], at)
      written.append(layer)
    return x, tuple(written)


class Transformer(nn.Module):
  """Tokens to hidden states."""

  config: TransformerConfig

  def setup(self) -> None:
    cfg = self.config
    self.embed = nn.Embed(
      cfg.vocab_size, cfg.model_dim, embedding_init=cfg.init('embed', cfg.num_layers), dtype=cfg.dtype
    )
    self.positions = None if cfg.positions is None else cfg.positions.copy()
    self.drop = _dropout(cfg.embedding_dropout)
    period = Period if cfg.remat is None else nn.remat(Period, policy=REMAT[cfg.remat], prevent_cse=not cfg.stacked)
    self.blocks: Any
    if cfg.stacked:
      scanned = nn.scan(
        period,
        variable_axes={'params': 0},
        split_rngs={'params': True, 'dropout': True},
        in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
        length=cfg.periods,
      )
      self.blocks = scanned(cfg)
    else:
      self.blocks = [period(cfg) for _ in range(cfg.periods)]
    # The residual part says which of the two exist.
    self.norm_embedding, self.norm_final = cfg.norm.copy(dtype=cfg.dtype), cfg.norm.copy(dtype=cfg.dtype)

  def __call__(
    self, tokens: Int[Array, 'B T'], layout: Layout | None = None, cache: Cache | None = None
  ) -> tuple[Float[Array, 'B T D'], Cache | None]:
    """Hidden states; with a cache, these tokens see what it holds, and it comes back holding them too."""
    cfg = self.config
    layout = left_to_right(tokens) if layout is None else layout
    norm = lambda name: getattr(self, name)
    x = self.embed(tokens)
    if cfg.embedding_gradient != 1:
      x = cfg.embedding_gradient * x + jax.lax.stop_gradient((1 - cfg.embedding_gradient) * x)
    if self.positions is not None:
      x = x + self.positions(layout, cfg.model_dim).astype(x.dtype)
    x = spread(cfg.residual.begin(x if self.drop is None else self.drop(x), norm))
    turn = None if cfg.rotation is None else cfg.rotation(layout, cfg.head_width)
    if cache is not None:
      turn = jax.tree.map(held, turn)  # else for each layer and head, which few tokens wait for
    keys, at = (layout, None) if cache is None else (cache.extend_layout(layout), cache.length)
    x, read = self._through(x, None if cache is None else cache.layers, layout, turn, keys, at)
    if cache is not None:
      cache = Cache(read, keys, cache.length + tokens.shape[1])
    return cfg.residual.finish(x, norm), cache

  def _through(
    self, x: Float[Array, 'B T D'], read: tuple[KeyValues, ...] | None, *others: Any
  ) -> tuple[Float[Array, 'B T D'], Any]:
    """All layers: one scan over stacked ones, a loop over the rest."""
    if self.config.stacked:
      return self.blocks(x, read, *others)
    written: tuple[KeyValues | None, ...] = ()
    width = len(self.config.attention)
    for i, period in enumerate(self.blocks):
      x, layers_read = period(x, None if read is None else read[i * width : (i + 1) * width], *others)
      written += layers_read
    return x, written


def empty_cache(config: TransformerConfig, batch: int, length: int, spare: int = SPARE) -> Cache:
  """A cache for `length` tokens of `batch` rows, with nothing read.

  A layer whose pattern sees no more than the last tokens keeps those and `spare` slots, a ring: half as many may be
  read at once and forgotten again (`Cache.rewound`).
  """
  stack, number = ((config.periods,), 1) if config.stacked else ((), config.periods)

  def empty(pattern: Pattern) -> KeyValues:
    slots = length if pattern.kept is None else min(length, pattern.kept + spare)
    shape = (*stack, batch, config.num_kv_heads, slots, config.head_width)
    return KeyValues(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))

  zeros = jnp.zeros((batch, length), jnp.int32)
  layout = Layout(zeros, zeros, zeros, zeros, zeros.astype(bool))
  return Cache(tuple(map(empty, config.attention * number)), layout, jnp.zeros(batch, jnp.int32))


def unstack(params: Params) -> Params:
  """Parameters of a stacked model as those of the same config with stacked=False: `blocks` [L, ...] to `blocks_0`, ...

  Decoding one token at a time is faster so, as no layer is sliced out of the stack. Call it once, outside jit.
  """

  def walk(tree: Any) -> Any:
    if not isinstance(tree, Mapping):
      return tree
    flat = {name: walk(branch) for name, branch in tree.items() if name != 'blocks'}
    if 'blocks' in tree:
      periods = len(jax.tree.leaves(tree['blocks'])[0])
      flat |= {f'blocks_{i}': jax.tree.map(operator.itemgetter(i), tree['blocks']) for i in range(periods)}
    return flat

  return walk(params)
