"""GLM and ChatGLM-6B as the code released with their weights has them: models that read their prompt both ways.

GLM has the tanh form of gelu, with which it was trained; its port on the Hugging Face hub has taken the exact one.
"""

import dataclasses
from typing import Any

from gpt_jax.interop.forms import Form, Grouped, Same, Transposed
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
  only,
)
from gpt_jax.models import families
from gpt_jax.models.parts import PARTS
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.types import UserError


def _linears(layer: str, qkv: Form) -> list[Entry]:
  return [
    *linear(f'{layer}attention.query_key_value', *QKV, bias=True, form=qkv),
    *linear(f'{layer}attention.dense', 'attention/out', bias=True),
    *linear(f'{layer}mlp.dense_h_to_4h', 'mlp/up', bias=True),
    *linear(f'{layer}mlp.dense_4h_to_h', 'mlp/down', bias=True),
  ]


# ---- glm -----------------------------------------------------------------------------------------------------------

GLM = {'block_position_encoding': True, 'relative_encoding': False}


def _glm(config: Json) -> TransformerConfig:
  only(config, **GLM)
  return families.glm(
    config['vocab_size'], config['num_layers'], config['hidden_size'], config['num_attention_heads'],
    config['max_sequence_length'],
  )  # fmt: skip


def _glm_fields(config: TransformerConfig) -> dict[str, Any]:
  places = config.positions.length if config.positions is not None else 0
  return {
    **GLM, 'vocab_size': config.vocab_size, 'num_layers': config.num_layers, 'hidden_size': config.model_dim,
    'num_attention_heads': config.num_heads, 'max_sequence_length': places - 1,
    'output_predict': True,  # where absent, the released code gives hidden states alone
  }  # fmt: skip


def _glm_entries(config: TransformerConfig) -> list[Entry]:
  layer = 'glm.transformer.layers.{}.'
  return [
    Entry('glm.word_embeddings.weight', EMBEDDING, Same()),
    Entry('glm.transformer.position_embeddings.weight', POSITIONS, Same()),
    Entry('glm.transformer.block_position_embeddings.weight', ('transformer/positions/block_table',), Same()),
    *_linears(layer, Transposed()),
    *layer_norm(f'{layer}input_layernorm', 'norm_attention'),
    *layer_norm(f'{layer}post_attention_layernorm', 'norm_mlp'),
    *layer_norm('glm.transformer.final_layernorm', 'transformer/norm_final'),
  ]


glm = Layout(
  'GLMForConditionalGeneration',
  read=_glm,
  write=_glm_fields,
  entries=_glm_entries,
  context='max_sequence_length',
  mark='max_sequence_length',
)


# ---- chatglm -------------------------------------------------------------------------------------------------------

CHATGLM = {'position_encoding_2d': True, 'pre_seq_len': None, 'quantization_bit': 0}


def _chatglm(config: Json) -> TransformerConfig:
  """ChatGLM-6B in another size, its alpha that of 28 layers: the released code never takes that of num_layers."""
  only(config, **CHATGLM)
  made = dataclasses.replace(
    families.chatglm_6b, vocab_size=config['vocab_size'], num_layers=config['num_layers'],
    model_dim=config['hidden_size'], num_heads=config['num_attention_heads'],
    num_kv_heads=config['num_attention_heads'], mlp=families.chatglm_6b.mlp.copy(hidden=config['inner_hidden_size']),
    norm=PARTS['norm']['layer'](epsilon=config['layernorm_epsilon']),
    tie_embeddings=config.get('tie_word_embeddings', True),
  )  # fmt: skip
  if made.head_width % 4:
    raise UserError(
      f'config.json: position_encoding_2d of heads of {made.head_width} dimensions is not supported, only of a multiple'
      ' of 4'
    )
  return made


def _chatglm_fields(config: TransformerConfig) -> dict[str, Any]:
  return {
    **CHATGLM, 'vocab_size': config.vocab_size, 'num_layers': config.num_layers, 'hidden_size': config.model_dim,
    'num_attention_heads': config.num_heads, 'inner_hidden_size': config.mlp.hidden,
    'layernorm_epsilon': getattr(config.norm, 'epsilon', None), 'tie_word_embeddings': config.tie_embeddings,
  }  # fmt: skip


def _chatglm_entries(config: TransformerConfig) -> list[Entry]:
  """Their norms stand before what they norm, and the normed stream goes on: ours stand behind what came before."""
  layer, norm = 'transformer.layers.{}.', 'input_layernorm'
  return [
    Entry('transformer.word_embeddings.weight', EMBEDDING, Same()),
    *layer_norm(layer.format(0) + norm, 'transformer/norm_embedding'),
    *_linears(layer, Grouped(config.num_heads, config.head_width)),
    *layer_norm(f'{layer}post_attention_layernorm', 'norm_attention'),
    *layer_norm(layer + norm, 'norm_mlp', last='transformer.final_layernorm'),
    *head(config),
  ]


chatglm = Layout(
  'ChatGLMModel',
  read=_chatglm,
  write=_chatglm_fields,
  entries=_chatglm_entries,
  ignored=r'rotary_emb\.inv_freq$',
  context='max_sequence_length',
  mark='inner_hidden_size',
)
