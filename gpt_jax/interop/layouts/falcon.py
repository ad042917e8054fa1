"""Falcon as transformers has it."""

from collections.abc import Mapping
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
from gpt_jax.models.positions import FalconAlibi
from gpt_jax.models.residual import Parallel, PostNorm, PreNorm
from gpt_jax.models.transformer import TransformerConfig

NORMS: Mapping[PreNorm | PostNorm | Parallel, Mapping[str, str]] = {
  Parallel(shared_norm=True): {'input_layernorm': 'norm_attention'},
  Parallel(shared_norm=False): {'ln_attn': 'norm_attention', 'ln_mlp': 'norm_mlp'},
  PreNorm(): {'input_layernorm': 'norm_attention', 'post_attention_layernorm': 'norm_mlp'},
}


def _falcon(config: Json) -> TransformerConfig:
  heads, width = config['num_attention_heads'], config['hidden_size']
  grouped, alibi = config.get('new_decoder_architecture', False), config.get('alibi', False)
  if grouped:
    only(config, parallel_attn=True)
  norms = config.get('num_ln_in_parallel_attn') or (2 if grouped else 1)
  kv_heads = config.get('num_kv_heads') or heads
  return TransformerConfig(
    vocab_size=config['vocab_size'], num_layers=config['num_hidden_layers'], model_dim=width, num_heads=heads,
    num_kv_heads=kv_heads if grouped else 1 if config.get('multi_query', True) else heads,
    mlp=feed_forward(PLAIN, 'activation', config.get('activation', 'gelu'), config.get('ffn_hidden_size') or 4 * width),
    residual=Parallel(shared_norm=norms == 1) if config.get('parallel_attn', True) else PreNorm(),
    norm=PARTS['norm']['layer'](epsilon=config['layer_norm_epsilon']),
    rotation=None if alibi else rotary(config), score_bias=FalconAlibi() if alibi else None, init=Normal(0.02),
    use_bias=config.get('bias', False), tie_embeddings=config.get('tie_word_embeddings', True),
  )  # fmt: skip


def _falcon_fields(config: TransformerConfig) -> dict[str, Any]:
  """In the form of 40B what that of 7B and RW has no place for: few key-value heads, or a norm each."""
  grouped = config.num_kv_heads not in (1, config.num_heads) or config.residual == Parallel(shared_norm=False)
  return {
    'vocab_size': config.vocab_size, 'num_hidden_layers': config.num_layers, 'hidden_size': config.model_dim,
    'num_attention_heads': config.num_heads, 'num_kv_heads': config.num_kv_heads if grouped else None,
    'multi_query': config.num_kv_heads == 1, 'alibi': config.score_bias == FalconAlibi(),
    'new_decoder_architecture': grouped, 'parallel_attn': isinstance(config.residual, Parallel),
    'num_ln_in_parallel_attn': (1 if config.residual == Parallel() else 2) if grouped else None,
    'ffn_hidden_size': config.mlp.hidden, 'activation': activation_name(PLAIN, config),
    'layer_norm_epsilon': getattr(config.norm, 'epsilon', None), 'bias': config.use_bias,
    'tie_word_embeddings': config.tie_embeddings, **rope_fields(config),
  }  # fmt: skip


def _falcon_entries(config: TransformerConfig) -> list[Entry]:
  layer, bias = 'transformer.h.{}.', config.use_bias
  return [
    Entry('transformer.word_embeddings.weight', EMBEDDING, Same()),
    *linear(
      f'{layer}self_attention.query_key_value', *QKV, bias=bias, form=Grouped(config.num_kv_heads, config.head_width)
    ),
    *linear(f'{layer}self_attention.dense', 'attention/out', bias=bias),
    *linear(f'{layer}mlp.dense_h_to_4h', 'mlp/up', bias=bias),
    *linear(f'{layer}mlp.dense_4h_to_h', 'mlp/down', bias=bias),
    *(entry for theirs, ours in NORMS[config.residual].items() for entry in layer_norm(layer + theirs, ours)),
    *layer_norm('transformer.ln_f', 'transformer/norm_final'),
    *head(config),
  ]


falcon = Layout('FalconForCausalLM', read=_falcon, write=_falcon_fields, entries=_falcon_entries)
