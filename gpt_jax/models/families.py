"""Families as their papers give them; where a paper is silent or contradicts itself, a comment says what was taken."""

from collections.abc import Mapping
from types import MappingProxyType

from flax import linen as nn

from gpt_jax.models.attention import Banded, Dense
from gpt_jax.models.initialization import Normal, Xavier
from gpt_jax.models.layers import GatedMlp, Mlp, gelu_exact
from gpt_jax.models.masks import Causal, Prefix
from gpt_jax.models.positions import Learned, Learned2D, Rotary, Rotary2D
from gpt_jax.models.residual import Parallel, PostNorm, PreNorm
from gpt_jax.models.transformer import TransformerConfig

layer_norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)
rms_norm = nn.RMSNorm(epsilon=1e-5)
prefix_dense = Dense(Causal() | Prefix())

# GPT-1: Radford et al. 2018, section 4.1; vocabulary of the released encoder.
gpt1 = TransformerConfig(
  vocab_size=40_478, num_layers=12, model_dim=768, num_heads=12, num_kv_heads=12,
  mlp=Mlp(3072), residual=PostNorm(), norm=layer_norm, positions=Learned(512), init=Normal(0.02),
  embedding_dropout=0.1, attention_dropout=0.1, residual_dropout=0.1)  # fmt: skip


def gpt2(num_layers: int, model_dim: int, num_heads: int) -> TransformerConfig:
  """GPT-2: Radford et al. 2019, table 2, with the head counts of the released models."""
  return TransformerConfig(
    vocab_size=50_257, num_layers=num_layers, model_dim=model_dim, num_heads=num_heads, num_kv_heads=num_heads,
    mlp=Mlp(4 * model_dim), residual=PreNorm(), norm=layer_norm, positions=Learned(1024, stddev=0.01))  # fmt: skip


# The band's width is not published, nor which of each two layers is banded: an ablation's choice, not GPT-3's.
GPT3_BAND = 256


def gpt3(num_layers: int, model_dim: int, num_heads: int, head_dim: int) -> TransformerConfig:
  """GPT-3: Brown et al. 2020, table 2.1: GPT-2 with alternating dense and locally banded layers."""
  return TransformerConfig(
    vocab_size=50_257, num_layers=num_layers, model_dim=model_dim, num_heads=num_heads, num_kv_heads=num_heads,
    head_dim=head_dim, mlp=Mlp(4 * model_dim), residual=PreNorm(), norm=layer_norm,
    positions=Learned(2048, stddev=0.01), attention=(Dense(), Banded(GPT3_BAND)))  # fmt: skip


def llama(
  num_layers: int, model_dim: int, num_heads: int, hidden: int, num_kv_heads: int | None = None, epsilon: float = 1e-5
) -> TransformerConfig:
  """LLaMA: Touvron et al. 2023, section 2.2; LLaMA-2 the same, with grouped queries in 34B and 70B."""
  return TransformerConfig(
    vocab_size=32_000, num_layers=num_layers, model_dim=model_dim, num_heads=num_heads,
    num_kv_heads=num_kv_heads or num_heads, mlp=GatedMlp(hidden), residual=PreNorm(),
    norm=nn.RMSNorm(epsilon=epsilon), rotation=Rotary(), init=Normal(0.02), use_bias=False,
    tie_embeddings=False)  # fmt: skip


def falcon(
  num_layers: int, model_dim: int, num_heads: int, num_kv_heads: int, *, shared_norm: bool
) -> TransformerConfig:
  """Falcon: Almazrouei et al. 2023: parallel blocks, heads of 64, few key-value heads."""
  return TransformerConfig(
    vocab_size=65_024, num_layers=num_layers, model_dim=model_dim, num_heads=num_heads, num_kv_heads=num_kv_heads,
    mlp=Mlp(4 * model_dim, activation=gelu_exact), residual=Parallel(shared_norm), norm=layer_norm, rotation=Rotary(),
    init=Normal(0.02), use_bias=False)  # fmt: skip


def glm(vocab_size: int, num_layers: int, model_dim: int, num_heads: int, length: int) -> TransformerConfig:
  """GLM: Du et al. 2022: a pre-norm model that reads its prefix both ways and has two learned positions."""
  return TransformerConfig(
    vocab_size=vocab_size, num_layers=num_layers, model_dim=model_dim, num_heads=num_heads, num_kv_heads=num_heads,
    mlp=Mlp(4 * model_dim), residual=PreNorm(), norm=layer_norm, positions=Learned2D(length + 1),
    attention=(prefix_dense,))  # fmt: skip


# GLM-130B: Zeng et al. 2022, sections 2.1 and 3, appendix B; DeepNorm's alpha and gain are (2 L)^(1/2), (2 L)^(-1/2).
glm_130b = TransformerConfig(
  vocab_size=150_528, num_layers=70, model_dim=12_288, num_heads=96, num_kv_heads=96,
  mlp=GatedMlp(32_768, activation=gelu_exact), residual=PostNorm(alpha=140**0.5, norm_embedding=True), norm=layer_norm,
  rotation=Rotary(), attention=(prefix_dense,), init=Xavier(gain=140**-0.5), embedding_gradient=0.1)  # fmt: skip

# ChatGLM-6B: the released code and weights.
chatglm_6b = TransformerConfig(
  vocab_size=130_528, num_layers=28, model_dim=4096, num_heads=32, num_kv_heads=32,
  mlp=Mlp(16_384), residual=PostNorm(alpha=56**0.5, norm_embedding=True), norm=layer_norm, rotation=Rotary2D(),
  attention=(prefix_dense,), init=Xavier(gain=56**-0.5))  # fmt: skip

# ChatGLM2-6B: the released code and weights.
chatglm2_6b = TransformerConfig(
  vocab_size=65_024, num_layers=28, model_dim=4096, num_heads=32, num_kv_heads=2, mlp=GatedMlp(13_696),
  residual=PreNorm(), norm=rms_norm, rotation=Rotary(fraction=0.5), init=Normal(0.02), use_bias=False, qkv_bias=True,
  tie_embeddings=False)  # fmt: skip

# SmolLM2-135M: Allal et al. 2025 and the released configuration.
smollm2_135m = TransformerConfig(
  vocab_size=49_152, num_layers=30, model_dim=576, num_heads=9, num_kv_heads=3, mlp=GatedMlp(1536),
  residual=PreNorm(), norm=rms_norm, rotation=Rotary(theta=100_000.0), init=Normal(576**-0.5), use_bias=False,
)  # fmt: skip

FAMILIES: Mapping[str, TransformerConfig] = MappingProxyType({
  'gpt1': gpt1,
  'gpt2_small': gpt2(12, 768, 12),
  'gpt2_medium': gpt2(24, 1024, 16),
  'gpt2_large': gpt2(36, 1280, 20),
  'gpt2_xl': gpt2(48, 1600, 25),
  'gpt3_125m': gpt3(12, 768, 12, 64),
  'gpt3_350m': gpt3(24, 1024, 16, 64),
  'gpt3_760m': gpt3(24, 1536, 16, 96),
  'gpt3_1_3b': gpt3(24, 2048, 16, 128),  # the table's 24 heads of 128 do not make 2048; 16 do
  'gpt3_2_7b': gpt3(32, 2560, 32, 80),
  'gpt3_6_7b': gpt3(32, 4096, 32, 128),
  'gpt3_13b': gpt3(40, 5120, 40, 128),  # the table's 5140 is not 40 heads of 128; 5120 is
  'gpt3_175b': gpt3(96, 12_288, 96, 128),
  'llama_7b': llama(32, 4096, 32, 11_008, epsilon=1e-6),
  'llama_13b': llama(40, 5120, 40, 13_824, epsilon=1e-6),
  'llama_33b': llama(60, 6656, 52, 17_920, epsilon=1e-6),
  'llama_65b': llama(80, 8192, 64, 22_016, epsilon=1e-5),
  'llama2_7b': llama(32, 4096, 32, 11_008),
  'llama2_13b': llama(40, 5120, 40, 13_824),
  'llama2_34b': llama(48, 8192, 64, 22_016, 8),  # never released; the shape is Code Llama 34B's
  'llama2_70b': llama(80, 8192, 64, 28_672, 8),
  'falcon_7b': falcon(32, 4544, 71, 1, shared_norm=True),
  'falcon_40b': falcon(60, 8192, 128, 8, shared_norm=False),
  'glm_large': glm(30_592, 24, 1024, 16, 512),
  'glm_10b': glm(50_304, 48, 4096, 64, 1024),
  'glm_130b': glm_130b,
  'chatglm_6b': chatglm_6b,
  'chatglm2_6b': chatglm2_6b,
  'smollm2_135m': smollm2_135m,
})  # fmt: skip
