"""Falcon as transformers has it."""

from typing import Any

from gpt_jax.interop.forms import Grouped, Same
from gpt_jax.interop.layouts.table import (
  EMBEDDING,
  PLAIN,
  QKV,
  Entry,
  Json,
  Layout,
  activation_name,
  feed_forward,
  head,
  layer_norm,
  linear,
  only,
  rope_fields,
  rotary,
)
from gpt_jax.models.initialization import Normal
from gpt_jax.models.parts import PARTS
from gpt_jax.models.residual import Parallel
from gpt_jax.models.transformer import TransformerConfig


def _falcon(config: Json) -> TransformerConfig:
  heads, width = config['num_attention_heads'], config['hidden_size']
  only(config, alibi=False, parallel_attn=True)
  grouped = config.get('new_decoder_architecture', False)
  norms = config.get('num_ln_in_parallel_attn') or (2 if grouped else 1)
  kv_heads = config.get('num_kv_heads') or heads
  return TransformerConfig(
    vocab_size=config['vocab_size'], num_layers=config['num_hidden_layers'], model_dim=width, num_heads=heads,
    num_kv_heads=kv_heads if grouped else 1 if config.get('multi_query', True) else heads,
    mlp=feed_forward(PLAIN, 'activation', config.get('activation', 'gelu'), config.get('ffn_hidden_size') or 4 * width),
    residual=Parallel(shared_norm=norms == 1), norm=PARTS['norm']['layer'](epsilon=config['layer_norm_epsilon']),
    rotation=rotary(config), init=Normal(0.02), use_bias=config.get('bias', False),
    tie_embeddings=config.get('tie_word_embeddings', True),
  )  # fmt: skip


def _falcon_fields(config: TransformerConfig) -> dict[str, Any]:
  return {
    'vocab_size': config.vocab_size, 'num_hidden_layers': config.num_layers, 'hidden_size': config.model_dim,
    'num_attention_heads': config.num_heads, 'num_kv_heads': config.num_kv_heads, 'alibi': False,
    'new_decoder_architecture': True, 'parallel_attn': True, 'ffn_hidden_size': config.mlp.hidden,
    'num_ln_in_parallel_attn': 1 if config.residual == Parallel() else 2, 'activation': activation_name(PLAIN, config),
    'layer_norm_epsilon': getattr(config.norm, 'epsilon', None), 'bias': config.use_bias,
    'tie_word_embeddings': config.tie_embeddings, **rope_fields(config),
  }  # fmt: skip


def _falcon_entries(config: TransformerConfig) -> list[Entry]:
  layer, shared = 'transformer.h.{}.', config.residual == Parallel(shared_norm=True)
  norms = [('input_layernorm', 'norm_attention')] if shared else [('ln_attn', 'norm_attention'), ('ln_mlp', 'norm_mlp')]
  grouped = Grouped(config.num_kv_heads, config.head_width)
  kinds = ('kernel', 'bias') if config.use_bias else ('kernel',)
  return [
    Entry('transformer.word_embeddings.weight', EMBEDDING, Same()),
    *(
      Entry(f'{layer}self_attention.query_key_value.{theirs}', tuple(f'{part}/{ours}' for part in QKV), grouped)
      for theirs, ours in zip(('weight', 'bias'), kinds, strict=False)
    ),
    *linear(f'{layer}self_attention.dense', 'attention/out', config.use_bias),
    *linear(f'{layer}mlp.dense_h_to_4h', 'mlp/up', config.use_bias),
    *linear(f'{layer}mlp.dense_4h_to_h', 'mlp/down', config.use_bias),
    *(entry for theirs, ours in norms for entry in layer_norm(layer + theirs, ours)),
    *layer_norm('transformer.ln_f', 'transformer/norm_final'),
    *head(config),
  ]


falcon = Layout('FalconForCausalLM', read=_falcon, write=_falcon_fields, entries=_falcon_entries)
