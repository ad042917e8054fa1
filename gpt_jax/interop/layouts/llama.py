"""LLaMA and Mistral as transformers has them."""

from typing import Any

from gpt_jax.interop.forms import Same
from gpt_jax.interop.layouts.table import (
  EMBEDDING,
  GATED,
  Entry,
  Json,
  Layout,
  activation_name,
  feed_forward,
  head,
  linear,
  rope_fields,
  rotary,
)
from gpt_jax.models.attention import Banded, Dense
from gpt_jax.models.initialization import Normal
from gpt_jax.models.parts import PARTS
from gpt_jax.models.residual import PreNorm
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.types import UserError


def _llama(config: Json) -> TransformerConfig:
  heads, layers = config['num_attention_heads'], config['num_hidden_layers']
  window = config.get('sliding_window')
  return TransformerConfig(
    vocab_size=config['vocab_size'], num_layers=layers, model_dim=config['hidden_size'], num_heads=heads,
    num_kv_heads=config.get('num_key_value_heads') or heads, head_dim=config.get('head_dim'),
    mlp=feed_forward(GATED, 'hidden_act', config.get('hidden_act', 'silu'), config['intermediate_size']),
    residual=PreNorm(), norm=PARTS['norm']['rms'](epsilon=config.get('rms_norm_eps', 1e-6)), rotation=rotary(config),
    attention=(Banded(window) if window else Dense(),), init=Normal(0.02), use_bias=config.get('mlp_bias', False),
    qkv_bias=_llama_bias(config), tie_embeddings=config.get('tie_word_embeddings', False),
  )  # fmt: skip


def _llama_bias(config: Json) -> bool | None:
  """Their attention_bias is of all four projections, ours of the output goes with the feed-forward network's."""
  if config.get('attention_bias', False) != config.get('mlp_bias', False):
    raise UserError('config.json: attention_bias and mlp_bias must be alike: other models are not supported')
  return None


def _llama_fields(config: TransformerConfig) -> dict[str, Any]:
  return {
    'vocab_size': config.vocab_size, 'num_hidden_layers': config.num_layers, 'hidden_size': config.model_dim,
    'num_attention_heads': config.num_heads, 'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_width, 'intermediate_size': config.mlp.hidden, 'hidden_act': activation_name(GATED, config),
    'rms_norm_eps': getattr(config.norm, 'epsilon', None), 'attention_bias': config.use_bias,
    'mlp_bias': config.use_bias, 'tie_word_embeddings': config.tie_embeddings, **rope_fields(config),
  }  # fmt: skip


def _llama_entries(config: TransformerConfig) -> list[Entry]:
  layer, bias = 'model.layers.{}.', config.use_bias
  linears = (
    ('self_attn.q_proj', 'attention/query'), ('self_attn.k_proj', 'attention/key'),
    ('self_attn.v_proj', 'attention/value'), ('self_attn.o_proj', 'attention/out'), ('mlp.gate_proj', 'mlp/gate'),
    ('mlp.up_proj', 'mlp/up'), ('mlp.down_proj', 'mlp/down'),
  )  # fmt: skip
  return [
    Entry('model.embed_tokens.weight', EMBEDDING, Same()),
    *(entry for theirs, ours in linears for entry in linear(layer + theirs, ours, bias=bias)),
    Entry(f'{layer}input_layernorm.weight', ('norm_attention/scale',), Same()),
    Entry(f'{layer}post_attention_layernorm.weight', ('norm_mlp/scale',), Same()),
    Entry('model.norm.weight', ('transformer/norm_final/scale',), Same()),
    *head(config),
  ]


llama = Layout(
  'LlamaForCausalLM',
  read=lambda config: _llama({**config, 'sliding_window': None}),
  write=_llama_fields,
  entries=_llama_entries,
  ignored=r'rotary_emb\.inv_freq$',
)

mistral = Layout(
  'MistralForCausalLM',
  read=_llama,
  write=lambda config: {
    **_llama_fields(config),
    'sliding_window': next((part.width for part in config.attention if isinstance(part, Banded)), None),
  },
  entries=_llama_entries,
  ignored=r'rotary_emb\.inv_freq$',
)
