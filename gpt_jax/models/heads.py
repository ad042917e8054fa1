"""What reads the Transformer's hidden states: today the language model."""

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gpt_jax.models.attention import Cache
from gpt_jax.models.layers import unembed
from gpt_jax.models.transformer import Transformer, TransformerConfig
from gpt_jax.types import Layout, Params


@struct.dataclass
class Unembedding:
  """From hidden states to logits in float32: a value of its own, so that a loss can take it piece by piece."""

  table: Float[Array, 'V D']
  softcap: float | None = struct.field(pytree_node=False, default=None)

  def __call__(self, hidden: Float[Array, '*B D']) -> Float[Array, '*B V']:
    logits = unembed(hidden, self.table)
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


def parameter_shapes(model: LanguageModel) -> Params:
  """The shapes of a model's parameters, without making them."""
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
