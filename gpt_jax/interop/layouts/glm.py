"""GLM-4 as transformers has it, and ChatGLM2, ChatGLM3 and GLM-4 as the code released with their weights has them."""

from typing import Any

from gpt_jax.interop.forms import Interleaved, Same, Transposed
from gpt_jax.interop.layouts.table import (
  EMBEDDING,
  GATED,
  QKV,
  Entry,
  Json,
  Layout,
  activation_name,
  feed_forward,
  head,
  linear,
  only,
  rope_fields,
  rotary,
)
from gpt_jax.models.initialization import Normal
from gpt_jax.models.parts import PARTS
from gpt_jax.models.positions import LinearScaling, Rotary
from gpt_jax.models.residual import PreNorm
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.types import UserError


def _turned(head_width: int, fraction: float) -> int:
  """How many dimensions of a head are turned, in whole pairs."""
  turned = int(head_width * fraction)
  if turned % 2 or not 0 < turned <= head_width:
    raise UserError(
      f'config.json: rotary position embedding of {turned} of the {head_width} dimensions of a head is not supported,'
      ' only of an even number'
    )
  return turned


def _interleaved(config: TransformerConfig) -> Interleaved:
  assert isinstance(config.rotation, Rotary)
  return Interleaved(Transposed(), config.head_width, _turned(config.head_width, config.rotation.fraction))


def _norms(layer: str, final: str) -> list[Entry]:
  return [
    Entry(f'{layer}input_layernorm.weight', ('norm_attention/scale',), Same()),
    Entry(f'{layer}post_attention_layernorm.weight', ('norm_mlp/scale',), Same()),
    Entry(f'{final}.weight', ('transformer/norm_final/scale',), Same()),
  ]


# ---- glm of transformers -------------------------------------------------------------------------------------------


def _glm(config: Json) -> TransformerConfig:
  rope = config.get('rope_parameters') or {}
  fraction = rope.get('partial_rotary_factor') or config.get('partial_rotary_factor', 0.5)
  _turned(config['head_dim'], fraction)
  return TransformerConfig(
    vocab_size=config['vocab_size'], num_layers=config['num_hidden_layers'], model_dim=config['hidden_size'],
    num_heads=config['num_attention_heads'], num_kv_heads=config['num_key_value_heads'], head_dim=config['head_dim'],
    mlp=feed_forward(GATED, 'hidden_act', config.get('hidden_act', 'silu'), config['intermediate_size']),
    residual=PreNorm(), norm=PARTS['norm']['rms'](epsilon=config['rms_norm_eps']), rotation=rotary(config, fraction),
    init=Normal(0.02), use_bias=False, qkv_bias=config['attention_bias'],
    tie_embeddings=config.get('tie_word_embeddings', False),
  )  # fmt: skip


def _glm_fields(config: TransformerConfig) -> dict[str, Any]:
  return {
    'vocab_size': config.vocab_size, 'num_hidden_layers': config.num_layers, 'hidden_size': config.model_dim,
    'num_attention_heads': config.num_heads, 'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_width, 'intermediate_size': config.mlp.hidden, 'hidden_act': activation_name(GATED, config),
    'rms_norm_eps': getattr(config.norm, 'epsilon', None), 'attention_bias': bool(config.qkv_bias),
    'tie_word_embeddings': config.tie_embeddings, **rope_fields(config),
    'partial_rotary_factor': getattr(config.rotation, 'fraction', None),
    'pad_token_id': None,  # where absent it is GLM-4's, beyond a smaller vocabulary
  }  # fmt: skip


def _glm_entries(config: TransformerConfig) -> list[Entry]:
  layer, bias, turned = 'model.layers.{}.', bool(config.qkv_bias), _interleaved(config)
  return [
    Entry('model.embed_tokens.weight', EMBEDDING, Same()),
    *linear(f'{layer}self_attn.q_proj', 'attention/query', bias=bias, form=turned),
    *linear(f'{layer}self_attn.k_proj', 'attention/key', bias=bias, form=turned),
    *linear(f'{layer}self_attn.v_proj', 'attention/value', bias=bias),
    *linear(f'{layer}self_attn.o_proj', 'attention/out', bias=False),
    *linear(f'{layer}mlp.gate_up_proj', 'mlp/gate', 'mlp/up', bias=False),
    *linear(f'{layer}mlp.down_proj', 'mlp/down', bias=False),
    *_norms(layer, 'model.norm'),
    *head(config),
  ]


glm = Layout('GlmForCausalLM', read=_glm, write=_glm_fields, entries=_glm_entries)


# ---- chatglm of the released code ----------------------------------------------------------------------------------

# What the released code offers a choice of, and what of it we can compute. Of a field that is absent it takes the same,
# but for multi_query_attention.
CHATGLM = {
  'multi_query_attention': True, 'rmsnorm': True, 'post_layer_norm': True, 'original_rope': True,
  'apply_residual_connection_post_layernorm': False, 'tie_word_embeddings': False, 'quantization_bit': 0,
  'pre_seq_len': None,
}  # fmt: skip


def _chatglm(config: Json) -> TransformerConfig:
  only({'multi_query_attention': False, **config}, **CHATGLM)
  ratio, bias = config.get('rope_ratio', 1), config.get('add_bias_linear', False)
  # What the code of ChatGLM2-6B-32K divides places by, that of later models multiplies the base with.
  divided = 'chatglm2' in str(config.get('_name_or_path')).lower() and ratio != 1
  rotation = Rotary(fraction=0.5, scaling=LinearScaling(ratio)) if divided else Rotary(10_000.0 * ratio, fraction=0.5)
  width = config.get('kv_channels') or config['hidden_size'] // config['num_attention_heads']
  _turned(width, 0.5)
  return TransformerConfig(
    vocab_size=config['padded_vocab_size'], num_layers=config['num_layers'], model_dim=config['hidden_size'],
    num_heads=config['num_attention_heads'], num_kv_heads=config['multi_query_group_num'], head_dim=width,
    mlp=feed_forward(GATED, 'activation', 'silu', config['ffn_hidden_size']), residual=PreNorm(),
    norm=PARTS['norm']['rms'](epsilon=config['layernorm_epsilon']), rotation=rotation,
    init=Normal(0.02), use_bias=bias, qkv_bias=bias or config.get('add_qkv_bias', False), tie_embeddings=False,
  )  # fmt: skip


def _chatglm_fields(config: TransformerConfig) -> dict[str, Any]:
  scaling = getattr(config.rotation, 'scaling', None)
  ratio = {'rope_ratio': getattr(config.rotation, 'theta', 0.0) / 10_000}
  if isinstance(scaling, LinearScaling):
    ratio = {'rope_ratio': scaling.factor, '_name_or_path': 'THUDM/chatglm2-6b-32k'}
  return {
    **CHATGLM, 'padded_vocab_size': config.vocab_size, 'num_layers': config.num_layers,
    'hidden_size': config.model_dim, 'num_attention_heads': config.num_heads,
    'multi_query_group_num': config.num_kv_heads, 'kv_channels': config.head_width,
    'ffn_hidden_size': config.mlp.hidden, 'layernorm_epsilon': getattr(config.norm, 'epsilon', None),
    'add_bias_linear': config.use_bias,
    'add_qkv_bias': config.use_bias if config.qkv_bias is None else config.qkv_bias, **ratio,
  }  # fmt: skip


def _chatglm_entries(config: TransformerConfig) -> list[Entry]:
  layer, bias = 'transformer.encoder.layers.{}.', config.use_bias
  qkv_bias = bias or bool(config.qkv_bias)
  return [
    Entry('transformer.embedding.word_embeddings.weight', EMBEDDING, Same()),
    *linear(f'{layer}self_attention.query_key_value', *QKV, bias=qkv_bias, form=_interleaved(config)),
    *linear(f'{layer}self_attention.dense', 'attention/out', bias=bias),
    *linear(f'{layer}mlp.dense_h_to_4h', 'mlp/gate', 'mlp/up', bias=bias),
    *linear(f'{layer}mlp.dense_4h_to_h', 'mlp/down', bias=bias),
    *_norms(layer, 'transformer.encoder.final_layernorm'),
    Entry('transformer.output_layer.weight', ('unembed/embedding',), Same()),
  ]


chatglm = Layout(
  'ChatGLMModel',
  read=_chatglm,
  write=_chatglm_fields,
  entries=_chatglm_entries,
  ignored=r'rotary_pos_emb\.inv_freq$',
  context='seq_length',
  head='transformer.output_layer.weight',
)
