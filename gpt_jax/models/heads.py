"""What reads the Transformer's hidden states: the language model, and heads that guess further ahead."""

import operator
from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from gpt_jax.models.caches import Cache
from gpt_jax.models.layers import affine, unembed
from gpt_jax.models.quantization import Quantization, product
from gpt_jax.models.transformer import Transformer, TransformerConfig
from gpt_jax.types import Layout, Params


@struct.dataclass
class Unembedding:
  """From hidden states to logits in float32: a value of its own, so that a loss can take it piece by piece."""

  table: Any
  """[V, D], or with a quantisation what that stores of it."""
  softcap: float | None = struct.field(pytree_node=False, default=None)
  quantization: Quantization | None = struct.field(pytree_node=False, default=None)

  def __call__(self, hidden: Float[Array, '*B D']) -> Float[Array, '*B V']:
    if self.quantization is None:
      logits = unembed(hidden, self.table)
    else:
      rows = product(self.quantization, hidden.reshape(-1, hidden.shape[-1]), self.table)
      logits = rows.reshape(*hidden.shape[:-1], -1)
    return logits if self.softcap is None else self.softcap * jnp.tanh(logits / self.softcap)


class LanguageModel(nn.Module):
  """A distribution over the token that follows each token."""

  config: TransformerConfig

  def setup(self) -> None:
    cfg = self.config
    self.transformer = Transformer(cfg)
    if not cfg.tie_embeddings:
      self.unembed = nn.Embed(cfg.vocab_size, cfg.model_dim, embedding_init=cfg.init('unembed', cfg.num_layers))

  def __call__(
    self, tokens: Int[Array, 'B T'], layout: Layout | None = None, cache: Cache | None = None
  ) -> tuple[Float[Array, 'B T V'], Cache | None]:
    """Logits, and the cache that has read the tokens when one is given."""
    hidden, unembedding, cache = self.features(tokens, layout, cache)
    return unembedding(hidden), cache

  def features(
    self, tokens: Int[Array, 'B T'], layout: Layout | None = None, cache: Cache | None = None
  ) -> tuple[Float[Array, 'B T D'], Unembedding, Cache | None]:
    """Hidden states and the map from them to logits, for those who do not want all logits at once."""
    hidden, cache = self.transformer(tokens, layout, cache)
    table = self.transformer.embed.embedding if self.config.tie_embeddings else self.unembed.embedding
    return hidden, Unembedding(table, self.config.logit_softcap), cache


class RewardModel(nn.Module):
  """A number for a text, of the hidden state of its last token (Ouyang et al. 2022, section 3.5).

  The head begins as N(0, 1 / (D + 1)) and no bias (Stiennon et al. 2020: deviation 1 / sqrt(D + 1)).
  """

  config: TransformerConfig

  def setup(self) -> None:
    self.transformer = Transformer(self.config)
    width = self.config.model_dim
    self.kernel = self.param('reward_kernel', nn.initializers.normal((width + 1) ** -0.5), (width,))
    self.bias = self.param('reward_bias', nn.initializers.zeros, ())

  def __call__(self, tokens: Int[Array, 'B T'], layout: Layout | None = None) -> Float[Array, 'B']:
    """Rewards in float32. A layout says by segment 0 where there is padding, behind the text; None: nowhere."""
    hidden, _ = self.transformer(tokens, layout)
    length = tokens.shape[1] if layout is None else jnp.sum(layout.segment > 0, axis=1)
    last = jnp.broadcast_to(jnp.maximum(length - 1, 0), tokens.shape[:1])
    return scalar(jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0], self.kernel, self.bias)

  def values(self, tokens: Int[Array, 'B T'], layout: Layout | None = None) -> Float[Array, 'B T']:
    """What the head says at every token, for a model that learns to foresee rewards."""
    return scalar(self.transformer(tokens, layout)[0], self.kernel, self.bias)


def scalar(hidden: Float[Array, '*B D'], kernel: Float[Array, 'D'], bias: Float[Array, '']) -> Float[Array, '*B']:
  """A number of each hidden state, in float32."""
  return jnp.sum(hidden.astype(jnp.float32) * kernel, axis=-1) + bias


def reward_params(params: Params, drawn: Params) -> Params:
  """A reward model that begins as a language model does: its Transformer, and the head of parameters `drawn` anew."""
  return {'params': {**drawn['params'], 'transformer': params['params']['transformer']}}


class ActorCritic(LanguageModel):
  """A language model, the policy, and how good what it writes will turn out to be (PPO).

  Its parameters are those of the language model and, besides, the critic's: of a Transformer of its own, under `critic`
  as a reward model has them, or of a head alone on the policy's hidden states, which begins at zero.
  """

  critic_config: TransformerConfig | None = None
  """Of the critic's own Transformer; None: it shares the policy's."""

  def setup(self) -> None:
    super().setup()
    zeros = nn.initializers.zeros
    if self.critic_config is not None:
      self.critic = RewardModel(self.critic_config)
    else:
      self.kernel = self.param('reward_kernel', zeros, (self.config.model_dim,))
      self.bias = self.param('reward_bias', zeros, ())

  def features_and_values(
    self, tokens: Int[Array, 'B T'], layout: Layout | None = None
  ) -> tuple[Float[Array, 'B T D'], Unembedding, Float[Array, 'B T']]:
    """`features` of the policy, and the value at every token."""
    hidden, unembedding, _ = self.features(tokens, layout)
    if self.critic_config is not None:
      return hidden, unembedding, self.critic.values(tokens, layout)
    return hidden, unembedding, scalar(hidden, self.kernel, self.bias)


def policy_params(params: Params) -> Params:
  """The language model's parameters of an `ActorCritic`'s, or its own as they are."""
  critic = ('critic', 'reward_kernel', 'reward_bias')
  return {'params': {name: branch for name, branch in params['params'].items() if name not in critic}}


class Medusa(nn.Module):
  """Heads that guess ahead: head k = 1 .. M the token k places behind the next (Cai et al. 2024, section 2.1.1).

  p_k = softmax(W2_k (SiLU(W1_k h + b_k) + h)), h the last hidden state of a language model; W1 and b begin at zero and
  W2 as the model's unembedding (see `medusa_params`), so that each head begins as the model itself. Every head has
  parameters of its own, stacked on a leading axis M. The model's softcap is kept.

  `shared` (ours, not the paper's): W2 is the model's unembedding for all heads, and gets no gradient: for small models
  with large vocabularies, where W2 is nearly all that a head would learn, hold and read.

  `draft_vocab_size`: the heads tell so many tokens apart, which have numbers of their own here, and guess no others
  (Zhao et al. 2025, FR-Spec, of drafts: most of what is right is frequent, and most of the table is read for the rest).
  """

  config: TransformerConfig
  """Of the language model; computation is in its dtype."""
  num_heads: int
  shared: bool = False
  quantization: Quantization | None = None
  """How W2 is stored; see `quantized_medusa`."""
  draft_vocab_size: int | None = None
  """None: the model's."""

  @property
  def vocab_size(self) -> int:
    return self.draft_vocab_size or self.config.vocab_size

  def setup(self) -> None:
    width, vocabulary = self.config.model_dim, self.vocab_size
    zeros = nn.initializers.zeros
    self.kernel = self.param('residual_kernel', zeros, (self.num_heads, width, width))
    self.bias = self.param('residual_bias', zeros, (self.num_heads, width))
    tables = (1 if self.shared else self.num_heads, vocabulary, width)

    def initialize(key: jax.Array) -> Any:
      drawn = self.config.init('unembed', self.config.num_layers)(key, tables)
      return drawn if self.quantization is None else _encoded(self.quantization, drawn)

    self.table = self.param('unembed_table', initialize)

  def __call__(self, hidden: Float[Array, '*B D']) -> Float[Array, '*B M V']:
    """Logits of all heads, in float32."""
    hidden, unembeddings = self.features(hidden)
    if self.shared:  # one product: the table is read once for all heads
      return unembeddings[0](hidden)
    return jnp.stack([unembed(hidden[..., k, :]) for k, unembed in enumerate(unembeddings)], axis=-2)

  def features(self, hidden: Float[Array, '*B D']) -> tuple[Float[Array, '*B M D'], tuple[Unembedding, ...]]:
    """What each head makes of the hidden states, and its map from that to logits, for those who take them in parts."""
    heads, width = self.num_heads, self.config.model_dim
    hidden = hidden.astype(self.config.dtype)
    kernel = self.kernel.swapaxes(0, 1).reshape(width, heads * width)  # one product for all heads
    residual = affine(hidden, kernel, self.bias.reshape(-1)).reshape(*hidden.shape[:-1], heads, width)
    tables = jax.lax.stop_gradient(self.table) if self.shared else self.table
    each = (jax.tree.map(operator.itemgetter(0 if self.shared else k), tables) for k in range(heads))
    unembeddings = tuple(Unembedding(table, self.config.logit_softcap, self.quantization) for table in each)
    return nn.silu(residual) + hidden[..., None, :], unembeddings


def medusa_params(medusa: Medusa, table: Float[Array, 'V D'], vocabulary: Int[np.ndarray, 'G'] | None = None) -> Params:
  """The parameters that heads begin with: W1 and b zero, W2 the language model's unembedding.

  That is of the tokens that they tell apart, by the model's numbers; None: all.
  """
  table = table if vocabulary is None else table[vocabulary]
  shapes = jax.eval_shape(medusa.init, jax.random.key(0), jnp.zeros((1, table.shape[1])))['params']
  zeros = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items() if name != 'unembed_table'}
  whole = shapes['unembed_table']
  return {'params': {**zeros, 'unembed_table': jnp.broadcast_to(table, whole.shape).astype(whole.dtype)}}


def quantized_medusa(medusa: Medusa, params: Params, quantization: Quantization) -> tuple[Medusa, Params]:
  """The same heads with W2 in few bits: for guesses, which the model checks, that do not wait for memory."""
  table = jax.jit(_encoded, static_argnums=0)(quantization, params['params']['unembed_table'])
  return medusa.copy(quantization=quantization), {'params': {**params['params'], 'unembed_table': table}}


def _encoded(quantization: Quantization, tables: Float[Array, 'M V D']) -> dict[str, jax.Array]:
  return jax.lax.map(lambda table: quantization.encode(table.T), tables)


def unembedding_table(config: TransformerConfig, params: Params) -> Float[Array, 'V D']:
  """The table by which a language model makes logits of hidden states."""
  inner = params['params']
  return (inner['transformer']['embed'] if config.tie_embeddings else inner['unembed'])['embedding']


def parameter_shapes(model: LanguageModel) -> Params:
  """The shapes of a model's parameters, without making them."""
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
