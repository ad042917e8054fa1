"""The model types of Hugging Face's transformers: which config is which of ours, and which tensor which parameter."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

from gpt_jax.interop.forms import Form, Grouped, Joined, Same, Transposed
from gpt_jax.models.attention import Banded, Dense
from gpt_jax.models.initialization import Normal
from gpt_jax.models.parts import PARTS
from gpt_jax.models.positions import Learned, LinearScaling, Llama3Scaling, Rotary, Scaling
from gpt_jax.models.residual import Parallel, PostNorm, PreNorm
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.types import UserError

Json = Mapping[str, Any]


class Entry(NamedTuple):
  """A tensor of theirs, and the parameters of ours that it holds; {} stands for the number of a layer."""

  theirs: str
  ours: tuple[str, ...]
  form: Form


@dataclasses.dataclass(frozen=True)
class Layout:
  """A model type: `read` and `write` are of its config.json, `entries` of its tensors.

  `write` gives what `read` needs to give the same config again; a config for which it does not has no such layout.
  """

  architecture: str
  read: Callable[[Json], TransformerConfig]
  write: Callable[[TransformerConfig], dict[str, Any]]
  entries: Callable[[TransformerConfig], list[Entry]]
  ignored: str = r'$^'
  """Tensors that are no parameters, as a regex: masks and tables of angles that old files hold."""


# ---- what several have in common -----------------------------------------------------------------------------------

# Their names of activations, and our names of the feed-forward networks that have them.
PLAIN = {'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'gelu': 'gelu_exact', 'relu': 'relu'}
GATED = {'silu': 'swiglu', 'gelu_pytorch_tanh': 'geglu'}


def _mlp(activations: Mapping[str, str], field: str, name: str, hidden: int) -> Any:
  if name not in activations:
    raise UserError(f'config.json: {field} = {name!r} is not supported; known: {", ".join(activations)}')
  return PARTS['mlp'][activations[name]](hidden)


def _activation(activations: Mapping[str, str], config: TransformerConfig) -> str:
  return next(
    (theirs for theirs, ours in activations.items() if PARTS['mlp'][ours](config.mlp.hidden) == config.mlp), ''
  )


def _is(config: Json, **needed: Any) -> None:
  """Refuses a config whose fields, where it has them, are others than those we can compute."""
  for field, value in needed.items():
    if config.get(field, value) != value:
      raise UserError(f'config.json: {field} = {config[field]!r} is not supported, only {value!r}')


def _rotary(config: Json, fraction: float = 1.0) -> Rotary:
  """transformers 5 puts all in rope_parameters, 4 in rope_theta and rope_scaling."""
  rope = config.get('rope_parameters') or config.get('rope_scaling') or {}
  kind = rope.get('rope_type', rope.get('type', 'default'))
  scaling: Scaling | None = None
  if kind == 'linear':
    scaling = LinearScaling(rope['factor'])
  elif kind == 'llama3':
    scaling = Llama3Scaling(
      rope['factor'], rope['low_freq_factor'], rope['high_freq_factor'], rope['original_max_position_embeddings']
    )
  elif kind != 'default':
    raise UserError(f'config.json: rope_type = {kind!r} is not supported; known: default, linear, llama3')
  theta: float = rope.get('rope_theta') or config.get('rope_theta') or 10_000.0
  return Rotary(float(theta), fraction, scaling)


def _rope(config: TransformerConfig) -> dict[str, Any]:
  if not isinstance(config.rotation, Rotary):
    return {}
  scaling = config.rotation.scaling
  written: dict[str, Any] = {'rope_theta': config.rotation.theta, 'rope_scaling': None}
  if isinstance(scaling, LinearScaling):
    written['rope_scaling'] = {'rope_type': 'linear', 'factor': scaling.factor}
  if isinstance(scaling, Llama3Scaling):
    written['rope_scaling'] = {
      'rope_type': 'llama3',
      'factor': scaling.factor,
      'low_freq_factor': scaling.low_frequency_factor,
      'high_freq_factor': scaling.high_frequency_factor,
      'original_max_position_embeddings': scaling.original_length,
    }
  return written


def _linear(theirs: str, ours: str, bias: bool, form: Form = Transposed()) -> list[Entry]:
  """A linear layer and its bias."""
  entries = [Entry(f'{theirs}.weight', (f'{ours}/kernel',), form)]
  return entries + ([Entry(f'{theirs}.bias', (f'{ours}/bias',), Same())] if bias else [])


def _layer_norm(theirs: str, ours: str) -> list[Entry]:
  return [Entry(f'{theirs}.{a}', (f'{ours}/{b}',), Same()) for a, b in (('weight', 'scale'), ('bias', 'bias'))]


def _head(config: TransformerConfig) -> list[Entry]:
  return [] if config.tie_embeddings else [Entry('lm_head.weight', ('unembed/embedding',), Same())]


QKV = ('attention/query', 'attention/key', 'attention/value')
EMBEDDING = ('transformer/embed/embedding',)
POSITIONS = ('transformer/positions/table',)


# ---- GPT-1 and GPT-2 -----------------------------------------------------------------------------------------------


def _gpt(
  config: Json, residual: PreNorm | PostNorm, activations: Mapping[str, str], activation: str, **more: Any
) -> TransformerConfig:
  width, heads = config['n_embd'], config['n_head']
  _is(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
  return TransformerConfig(
    vocab_size=config['vocab_size'], num_layers=config['n_layer'], model_dim=width, num_heads=heads,
    num_kv_heads=heads, mlp=_mlp(activations, 'activation', activation, config.get('n_inner') or 4 * width),
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
  qkv = [
    Entry(f'{layer}attn.c_attn.{theirs}', tuple(f'{part}/{ours}' for part in QKV), Joined())
    for theirs, ours in (('weight', 'kernel'), ('bias', 'bias'))
  ]
  return [
    Entry(f'transformer.{embedding}.weight', EMBEDDING, Same()),
    Entry(f'transformer.{positions}.weight', POSITIONS, Same()),
    *qkv,
    *_linear(f'{layer}attn.c_proj', 'attention/out', True, Same()),
    *_linear(f'{layer}mlp.c_fc', 'mlp/up', True, Same()),
    *_linear(f'{layer}mlp.c_proj', 'mlp/down', True, Same()),
    *(entry for theirs, ours in norms for entry in _layer_norm(theirs, ours)),
    *_head(config),
  ]


GPT_NORMS = (('transformer.h.{}.ln_1', 'norm_attention'), ('transformer.h.{}.ln_2', 'norm_mlp'))

# What they call gelu here is the tanh form, which they call gelu_new elsewhere.
GPT1 = {'gelu': 'gelu', 'relu': 'relu'}

gpt1 = Layout(
  'OpenAIGPTLMHeadModel',
  read=lambda config: _gpt(config, PostNorm(), GPT1, config.get('afn', 'gelu'), init=Normal(0.02)),
  write=lambda config: {**_gpt_fields(config), 'afn': _activation(GPT1, config)},
  entries=lambda config: _gpt_entries('tokens_embed', 'positions_embed', GPT_NORMS, config),
  ignored=r'\.attn\.(masked_)?bias$|position_ids$',
)

gpt2 = Layout(
  'GPT2LMHeadModel',
  read=lambda config: _gpt(config, PreNorm(), PLAIN, config.get('activation_function', 'gelu_new')),
  write=lambda config: {
    **_gpt_fields(config), 'n_inner': config.mlp.hidden, 'activation_function': _activation(PLAIN, config)
  },
  entries=lambda config: _gpt_entries(
    'wte', 'wpe', (*GPT_NORMS, ('transformer.ln_f', 'transformer/norm_final')), config
  ),
  ignored=r'\.attn\.(masked_)?bias$',
)  # fmt: skip


# ---- LLaMA and Mistral ---------------------------------------------------------------------------------------------


def _llama(config: Json) -> TransformerConfig:
  heads, layers = config['num_attention_heads'], config['num_hidden_layers']
  window = config.get('sliding_window')
  return TransformerConfig(
    vocab_size=config['vocab_size'], num_layers=layers, model_dim=config['hidden_size'], num_heads=heads,
    num_kv_heads=config.get('num_key_value_heads') or heads, head_dim=config.get('head_dim'),
    mlp=_mlp(GATED, 'hidden_act', config.get('hidden_act', 'silu'), config['intermediate_size']), residual=PreNorm(),
    norm=PARTS['norm']['rms'](epsilon=config.get('rms_norm_eps', 1e-6)), rotation=_rotary(config),
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
    'head_dim': config.head_width, 'intermediate_size': config.mlp.hidden, 'hidden_act': _activation(GATED, config),
    'rms_norm_eps': getattr(config.norm, 'epsilon', None), 'attention_bias': config.use_bias,
    'mlp_bias': config.use_bias, 'tie_word_embeddings': config.tie_embeddings, **_rope(config),
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
    *(entry for theirs, ours in linears for entry in _linear(layer + theirs, ours, bias)),
    Entry(f'{layer}input_layernorm.weight', ('norm_attention/scale',), Same()),
    Entry(f'{layer}post_attention_layernorm.weight', ('norm_mlp/scale',), Same()),
    Entry('model.norm.weight', ('transformer/norm_final/scale',), Same()),
    *_head(config),
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


# ---- Falcon --------------------------------------------------------------------------------------------------------


def _falcon(config: Json) -> TransformerConfig:
  heads, width = config['num_attention_heads'], config['hidden_size']
  _is(config, alibi=False, parallel_attn=True)
  grouped = config.get('new_decoder_architecture', False)
  norms = config.get('num_ln_in_parallel_attn') or (2 if grouped else 1)
  kv_heads = config.get('num_kv_heads') or heads
  return TransformerConfig(
    vocab_size=config['vocab_size'], num_layers=config['num_hidden_layers'], model_dim=width, num_heads=heads,
    num_kv_heads=kv_heads if grouped else 1 if config.get('multi_query', True) else heads,
    mlp=_mlp(PLAIN, 'activation', config.get('activation', 'gelu'), config.get('ffn_hidden_size') or 4 * width),
    residual=Parallel(shared_norm=norms == 1), norm=PARTS['norm']['layer'](epsilon=config['layer_norm_epsilon']),
    rotation=_rotary(config), init=Normal(0.02), use_bias=config.get('bias', False),
    tie_embeddings=config.get('tie_word_embeddings', True),
  )  # fmt: skip


def _falcon_fields(config: TransformerConfig) -> dict[str, Any]:
  return {
    'vocab_size': config.vocab_size, 'num_hidden_layers': config.num_layers, 'hidden_size': config.model_dim,
    'num_attention_heads': config.num_heads, 'num_kv_heads': config.num_kv_heads, 'alibi': False,
    'new_decoder_architecture': True, 'parallel_attn': True, 'ffn_hidden_size': config.mlp.hidden,
    'num_ln_in_parallel_attn': 1 if config.residual == Parallel() else 2, 'activation': _activation(PLAIN, config),
    'layer_norm_epsilon': getattr(config.norm, 'epsilon', None), 'bias': config.use_bias,
    'tie_word_embeddings': config.tie_embeddings, **_rope(config),
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
    *_linear(f'{layer}self_attention.dense', 'attention/out', config.use_bias),
    *_linear(f'{layer}mlp.dense_h_to_4h', 'mlp/up', config.use_bias),
    *_linear(f'{layer}mlp.dense_4h_to_h', 'mlp/down', config.use_bias),
    *(entry for theirs, ours in norms for entry in _layer_norm(layer + theirs, ours)),
    *_layer_norm('transformer.ln_f', 'transformer/norm_final'),
    *_head(config),
  ]


falcon = Layout('FalconForCausalLM', read=_falcon, write=_falcon_fields, entries=_falcon_entries)

LAYOUTS: Mapping[str, Layout] = {
  'openai-gpt': gpt1,
  'gpt2': gpt2,
  'llama': llama,
  'mistral': mistral,
  'falcon': falcon,
}
"""By model_type of config.json."""
