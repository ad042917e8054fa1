"""GPT-1 and GPT-2 as transformers has them, openai-gpt and gpt2; and GPT-2 as OpenAI released it."""

from collections.abc import Mapping, Sequence
from typing import Any

from gpt_jax.interop.forms import Joined, Same
from gpt_jax.interop.layouts.table import (
  EMBEDDING,
  PLAIN,
  POSITIONS,
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
)
from gpt_jax.models.initialization import Normal
from gpt_jax.models.parts import PARTS
from gpt_jax.models.positions import Learned
from gpt_jax.models.residual import PostNorm, PreNorm
from gpt_jax.models.transformer import TransformerConfig


def _gpt(
  config: Json, residual: PreNorm | PostNorm, activations: Mapping[str, str], activation: str, **more: Any
) -> TransformerConfig:
  width, heads = config['n_embd'], config['n_head']
  only(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
  return TransformerConfig(
    vocab_size=config['vocab_size'], num_layers=config['n_layer'], model_dim=width, num_heads=heads,
    num_kv_heads=heads, mlp=feed_forward(activations, 'activation', activation, config.get('n_inner') or 4 * width),
    residual=residual, norm=PARTS['norm']['layer'](epsilon=config.get('layer_norm_epsilon', 1e-5)),
    positions=Learned(config['n_positions']), tie_embeddings=config.get('tie_word_embeddings', True), **more,
  )  # fmt: skip


def _gpt_fields(config: TransformerConfig) -> dict[str, Any]:
  return {
    'vocab_size': config.vocab_size, 'n_layer': config.num_layers, 'n_embd': config.model_dim,
    'n_head': config.num_heads, 'n_positions': config.positions.length if config.positions is not None else 0,
    'layer_norm_epsilon': getattr(config.norm, 'epsilon', None), 'tie_word_embeddings': config.tie_embeddings,
  }  # fmt: skip


def _gpt_entries(embedding: str, positions: str, norms: Sequence[tuple[str, str]], config: TransformerConfig) -> list:
  layer = 'transformer.h.{}.'
  return [
    Entry(f'transformer.{embedding}.weight', EMBEDDING, Same()),
    Entry(f'transformer.{positions}.weight', POSITIONS, Same()),
    *linear(f'{layer}attn.c_attn', *QKV, bias=True, form=Joined()),
    *linear(f'{layer}attn.c_proj', 'attention/out', bias=True, form=Same()),
    *linear(f'{layer}mlp.c_fc', 'mlp/up', bias=True, form=Same()),
    *linear(f'{layer}mlp.c_proj', 'mlp/down', bias=True, form=Same()),
    *(entry for theirs, ours in norms for entry in layer_norm(theirs, ours)),
    *head(config),
  ]


GPT_NORMS = (('transformer.h.{}.ln_1', 'norm_attention'), ('transformer.h.{}.ln_2', 'norm_mlp'))

# What they call gelu here is the tanh form, which they call gelu_new elsewhere.
GPT1 = {'gelu': 'gelu', 'relu': 'relu'}

gpt1 = Layout(
  'OpenAIGPTLMHeadModel',
  read=lambda config: _gpt(config, PostNorm(), GPT1, config.get('afn', 'gelu'), init=Normal(0.02)),
  write=lambda config: {**_gpt_fields(config), 'afn': activation_name(GPT1, config)},
  entries=lambda config: _gpt_entries('tokens_embed', 'positions_embed', GPT_NORMS, config),
  ignored=r'\.attn\.(masked_)?bias$|position_ids$',
  context='n_positions',
)

gpt2 = Layout(
  'GPT2LMHeadModel',
  read=lambda config: _gpt(config, PreNorm(), PLAIN, config.get('activation_function', 'gelu_new')),
  write=lambda config: {
    **_gpt_fields(config), 'n_inner': config.mlp.hidden, 'activation_function': activation_name(PLAIN, config)
  },
  entries=lambda config: _gpt_entries(
    'wte', 'wpe', (*GPT_NORMS, ('transformer.ln_f', 'transformer/norm_final')), config
  ),
  ignored=r'\.attn\.(masked_)?bias$',
  context='n_positions',
)  # fmt: skip


def _original(config: Json) -> TransformerConfig:
  same = {field: config[field] for field in ('n_embd', 'n_head', 'n_layer')}
  fields = {'vocab_size': config['n_vocab'], 'n_positions': config['n_ctx'], **same}
  return _gpt(fields, PreNorm(), PLAIN, 'gelu_new')


def _original_fields(config: TransformerConfig) -> dict[str, Any]:
  fields = _gpt_fields(config)
  same = {field: fields[field] for field in ('n_embd', 'n_head', 'n_layer')}
  return {'n_vocab': fields['vocab_size'], 'n_ctx': fields['n_positions'], **same}


def _original_entries(config: TransformerConfig) -> list[Entry]:
  layer = 'model/h{}/'
  linears = (
    ('attn/c_attn', QKV), ('attn/c_proj', ('attention/out',)), ('mlp/c_fc', ('mlp/up',)),
    ('mlp/c_proj', ('mlp/down',)),
  )  # fmt: skip
  norms = (
    (f'{layer}ln_1', 'norm_attention'), (f'{layer}ln_2', 'norm_mlp'), ('model/ln_f', 'transformer/norm_final'),
  )  # fmt: skip
  return [
    Entry('model/wte', EMBEDDING, Same()),
    Entry('model/wpe', POSITIONS, Same()),
    *(
      Entry(f'{layer}{theirs}/{a}', tuple(f'{part}/{b}' for part in ours), form)
      for theirs, ours in linears
      for a, b, form in (('w', 'kernel', Joined(leading=1)), ('b', 'bias', Joined()))
    ),
    *(Entry(f'{theirs}/{a}', (f'{ours}/{b}',), Same()) for theirs, ours in norms for a, b in NORM),
  ]


NORM = (('g', 'scale'), ('b', 'bias'))

original = Layout('model', read=_original, write=_original_fields, entries=_original_entries, context='n_ctx')
"""src/model.py of openai/gpt-2."""
