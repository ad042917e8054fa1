"""Models of transformers, made at random in odd shapes: read, computed, written, and read by transformers again."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.interop import huggingface
from gpt_jax.models import positions
from gpt_jax.types import Layout

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
pytestmark = pytest.mark.parity

LLAMA3 = {
  'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
  'original_max_position_embeddings': 32, 'rope_theta': 500.0,
}  # fmt: skip
YARN = {
  'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 32, 'beta_fast': 8.0, 'rope_theta': 500.0,
}  # fmt: skip
LINEAR = {'rope_type': 'linear', 'factor': 4.0, 'rope_theta': 10_000.0}
GPT = {'n_embd': 24, 'n_layer': 3, 'n_head': 3, 'n_positions': 128, 'vocab_size': 67}
LLAMA = {
  'hidden_size': 36, 'num_hidden_layers': 2, 'num_attention_heads': 6, 'num_key_value_heads': 3,
  'intermediate_size': 40, 'vocab_size': 67, 'head_dim': 10, 'max_position_embeddings': 128,
}  # fmt: skip
FALCON = {'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'vocab_size': 67, 'alibi': False}
RW = {**FALCON, 'alibi': True, 'multi_query': False, 'parallel_attn': False, 'bias': True}
GLM = {
  'hidden_size': 36, 'num_hidden_layers': 2, 'num_attention_heads': 6, 'num_key_value_heads': 3, 'head_dim': 12,
  'intermediate_size': 40, 'vocab_size': 67, 'max_position_embeddings': 128, 'pad_token_id': 0, 'eos_token_id': 2,
}  # fmt: skip
MODELS = {
  'gpt1': ('OpenAIGPT', GPT),
  'gpt2': ('GPT2', GPT),
  'gpt2 relu, narrow': ('GPT2', {**GPT, 'activation_function': 'relu', 'n_inner': 17}),
  'gpt2 exact gelu, untied': ('GPT2', {**GPT, 'activation_function': 'gelu', 'tie_word_embeddings': False}),
  'llama multi-head, tied': ('Llama', {**LLAMA, 'num_key_value_heads': 6, 'tie_word_embeddings': True}),
  'llama grouped, biases': ('Llama', {**LLAMA, 'attention_bias': True, 'mlp_bias': True}),
  'llama multi-query, linear': ('Llama', {**LLAMA, 'num_key_value_heads': 1, 'rope_parameters': LINEAR}),
  'llama yarn': ('Llama', {**LLAMA, 'rope_parameters': YARN}),
  'llama llama3 scaling, tanh gelu': (
    'Llama', {**LLAMA, 'rope_parameters': LLAMA3, 'hidden_act': 'gelu_pytorch_tanh', 'rms_norm_eps': 1e-3},
  ),
  'mistral window': ('Mistral', {**LLAMA, 'sliding_window': 5}),
  'mistral without window': ('Mistral', {**LLAMA, 'sliding_window': None}),
  'falcon multi-query': ('Falcon', {**FALCON, 'multi_query': True, 'new_decoder_architecture': False}),
  'falcon multi-head, biases': (
    'Falcon', {**FALCON, 'multi_query': False, 'new_decoder_architecture': False, 'bias': True},
  ),
  'falcon grouped': ('Falcon', {**FALCON, 'num_kv_heads': 2, 'new_decoder_architecture': True}),
  'falcon grouped, one norm, untied': (
    'Falcon', {**FALCON, 'num_kv_heads': 2, 'new_decoder_architecture': True, 'num_ln_in_parallel_attn': 1,
               'tie_word_embeddings': False, 'ffn_hidden_size': 50},
  ),
  'falcon rw': ('Falcon', RW),
  'falcon rw, three heads, no biases, untied': (
    'Falcon', {**RW, 'hidden_size': 36, 'num_attention_heads': 3, 'bias': False, 'tie_word_embeddings': False},
  ),
  'falcon rw, multi-query of six heads': (
    'Falcon', {**RW, 'hidden_size': 36, 'num_attention_heads': 6, 'multi_query': True},
  ),
  'falcon sequential, rotary': ('Falcon', {**RW, 'alibi': False, 'activation': 'relu', 'layer_norm_epsilon': 1e-3}),
  'falcon parallel, alibi': ('Falcon', {**RW, 'parallel_attn': True}),
  'falcon grouped, alibi': (
    'Falcon', {**FALCON, 'alibi': True, 'num_kv_heads': 2, 'new_decoder_architecture': True},
  ),
  'glm': ('Glm', GLM),
  'glm a third turned, no biases, tied': (
    'Glm', {**GLM, 'partial_rotary_factor': 1 / 3, 'attention_bias': False, 'tie_word_embeddings': True},
  ),
  'glm all turned, multi-query, tanh gelu': (
    'Glm', {**GLM, 'partial_rotary_factor': 1.0, 'num_key_value_heads': 1, 'hidden_act': 'gelu_pytorch_tanh'},
  ),
  'glm a fifth turned, multi-head, linear': (
    'Glm', {**GLM, 'head_dim': 10, 'num_key_value_heads': 6, 'rms_norm_eps': 1e-3,
            'rope_parameters': {**LINEAR, 'partial_rotary_factor': 0.2}},
  ),
  'glm llama3 scaling': ('Glm', {**GLM, 'rope_parameters': {**LLAMA3, 'partial_rotary_factor': 0.5}}),
  'chatglm': ('ChatGLM', GLM),
  'chatglm rope ratio, no biases, multi-query': (
    'ChatGLM', {**GLM, 'attention_bias': False, 'num_key_value_heads': 1, 'rope_theta': 500_000.0},
  ),
  'chatglm divided places': ('ChatGLM', {**GLM, 'rope_parameters': {**LINEAR, 'partial_rotary_factor': 0.5}}),
  'chatglm multi-head, small heads': ('ChatGLM', {**GLM, 'head_dim': 8, 'num_key_value_heads': 6}),
}  # fmt: skip
ALIBI = [name for name, (_, fields) in MODELS.items() if fields.get('alibi')]
TOKENS = np.random.default_rng(0).integers(0, 67, (3, 40))


def original(kind: str, fields: dict) -> 'transformers.PreTrainedModel':
  """Every parameter random, so that none can hide at 0 or 1."""
  torch.manual_seed(0)
  kind = {'ChatGLM': 'Glm'}.get(kind, kind)  # the same model under other names
  config = getattr(transformers, f'{kind}Config')(**fields)
  head = {'OpenAIGPT': 'OpenAIGPTLMHeadModel', 'GPT2': 'GPT2LMHeadModel'}.get(kind, f'{kind}ForCausalLM')
  model = getattr(transformers, head)(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      mean = float('norm' in name or 'ln_' in name) * float(name.endswith('weight'))
      parameter.copy_(mean + 0.15 * torch.randn_like(parameter))
  return model


CHATGLM = {
  'model.embed_tokens': 'transformer.embedding.word_embeddings', 'model.layers': 'transformer.encoder.layers',
  'self_attn.q_proj': 'self_attention.query_key_value', 'self_attn.o_proj': 'self_attention.dense',
  'mlp.gate_up_proj': 'mlp.dense_h_to_4h', 'mlp.down_proj': 'mlp.dense_4h_to_h',
  'model.norm': 'transformer.encoder.final_layernorm', 'lm_head': 'transformer.output_layer',
}  # fmt: skip
"""Names of transformers' Glm, and those of the code released with ChatGLM2's weights for the same."""


def save_as_chatglm(model: 'transformers.PreTrainedModel', folder: pathlib.Path) -> None:
  """As the code released with ChatGLM2's weights would have saved the same model."""
  config, theirs, tensors = model.config, model.state_dict(), {}
  rope = config.rope_parameters
  for name, tensor in theirs.items():
    if '.k_proj' in name or '.v_proj' in name:
      continue
    qkv = [theirs[name.replace('q_proj', part)] for part in ('q_proj', 'k_proj', 'v_proj')]
    renamed = functools.reduce(lambda name, pair: name.replace(*pair), CHATGLM.items(), name)
    tensors[renamed] = torch.cat(qkv if '.q_proj' in name else [tensor]).numpy()
  tensors['transformer.rotary_pos_emb.inv_freq'] = np.ones(3, np.float32)
  save_file(tensors, folder / 'model.safetensors')
  fields = {
    'model_type': 'chatglm', 'num_layers': config.num_hidden_layers, 'padded_vocab_size': config.vocab_size,
    'hidden_size': config.hidden_size, 'ffn_hidden_size': config.intermediate_size, 'kv_channels': config.head_dim,
    'num_attention_heads': config.num_attention_heads, 'seq_length': config.max_position_embeddings,
    'layernorm_epsilon': config.rms_norm_eps, 'rmsnorm': True, 'multi_query_attention': True,
    'multi_query_group_num': config.num_key_value_heads, 'add_qkv_bias': config.attention_bias,
    'add_bias_linear': False, 'post_layer_norm': True, 'apply_residual_connection_post_layernorm': False,
    'original_rope': True, 'rope_ratio': rope['rope_theta'] / 10_000,
  }  # fmt: skip
  if rope['rope_type'] == 'linear':
    fields |= {'rope_ratio': rope['factor'], '_name_or_path': 'THUDM/chatglm2-6b-32k'}
  (folder / 'config.json').write_text(json.dumps(fields))


def saved(name: str, folder: pathlib.Path) -> 'transformers.PreTrainedModel':
  kind, fields = MODELS[name]
  model = original(kind, fields)
  save_as_chatglm(model, folder) if kind == 'ChatGLM' else model.save_pretrained(folder)
  return model


@pytest.fixture(scope='module', params=MODELS, ids=lambda name: name.replace(' ', '_'))
def pair(request, tmp_path_factory):
  """A model of transformers, and the folder it saved."""
  folder = tmp_path_factory.mktemp('model')
  return saved(request.param, folder), folder


def logits(folder: pathlib.Path, tokens: np.ndarray = TOKENS, layout: Layout | None = None) -> np.ndarray:
  model, params = huggingface.read(folder).load()
  return np.asarray(jax.jit(model.apply)(params, jnp.asarray(tokens), layout)[0])


def test_logits_are_theirs(pair):
  model, folder = pair
  with torch.no_grad():
    theirs = model(torch.from_numpy(TOKENS)).logits.numpy()
  np.testing.assert_allclose(logits(folder), theirs, atol=1e-4)
  assert np.abs(theirs).max() > 0.1


def test_written_again_every_tensor_is_the_same_and_transformers_opens_it(pair, tmp_path):
  model, folder = pair
  ours, params = huggingface.read(folder).load(stacked=False)
  model_type = json.loads((folder / 'config.json').read_text())['model_type']
  huggingface.save(tmp_path, ours.config, params, model_type=model_type)
  before, after = load_file(folder / 'model.safetensors'), load_file(tmp_path / 'model.safetensors')
  before.pop('transformer.rotary_pos_emb.inv_freq', None)
  assert set(after) == set(before)
  for name in before:
    np.testing.assert_array_equal(after[name], before[name], err_msg=name)
  if model_type == 'chatglm':  # its code lies with its weights, not in transformers
    return
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
  assert type(again) is type(model)
  with torch.no_grad():
    theirs, back = (m(torch.from_numpy(TOKENS)).logits.numpy() for m in (model, again))
  np.testing.assert_allclose(back, theirs, atol=1e-5)


def continued(model: 'transformers.PreTrainedModel', prompt: list[int], length: int) -> list[int]:
  """What it writes after a prompt, whose tokens all count: without a mask transformers takes each 0 for padding."""
  tokens = torch.tensor([prompt])
  with torch.no_grad():
    theirs = model.generate(
      tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=length, min_new_tokens=length, do_sample=False,
      eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
  return theirs[0, len(prompt) :].tolist()


def test_greedy_continuations_of_a_padded_batch_are_theirs(pair):
  model, folder = pair
  ours, params = huggingface.read(folder).load()
  prompts = [[3, 1, 4, 1, 5, 9], [2], [6, 5, 3]]
  found = generate(ours, params, prompts, max_new_tokens=64, sampling=Sampling(temperature=0))
  for prompt, completion in zip(prompts, found, strict=True):
    assert completion.tokens.tolist() == continued(model, prompt, 64)


# ---- ALiBi where bfloat16 has no odd places -------------------------------------------------------------------------

FAR = np.random.default_rng(1).integers(0, 67, (2, 400))

# As torch's fused attention computes it, which is transformers' default: its eager path (5.24) adds the bias twice.


@pytest.mark.parametrize('name', ALIBI)
def test_alibi_far_into_a_text_is_rounded_as_theirs(name, tmp_path, monkeypatch):
  model = saved(name, tmp_path)
  with torch.no_grad():
    theirs = model(torch.from_numpy(FAR)).logits.numpy()
  np.testing.assert_allclose(logits(tmp_path, FAR), theirs, atol=1e-4)
  monkeypatch.setattr(positions, '_bfloat16', lambda x: x)
  assert np.abs(logits(tmp_path, FAR) - theirs).max() > 1e-3


@pytest.mark.parametrize('name', ALIBI)
def test_alibi_of_a_padded_batch_is_theirs(name, tmp_path):
  model, segment = saved(name, tmp_path), np.ones_like(FAR)
  segment[0, :37] = 0
  order = np.broadcast_to(np.arange(FAR.shape[1]), FAR.shape)
  position, zeros = np.maximum(np.cumsum(segment, 1) - 1, 0), np.zeros_like(FAR)
  with torch.no_grad():
    theirs = model(torch.from_numpy(FAR), attention_mask=torch.from_numpy(segment)).logits.numpy()
  ours = logits(tmp_path, FAR, Layout(order, position, zeros, segment, zeros.astype(bool)))
  np.testing.assert_allclose(ours[segment > 0], theirs[segment > 0], atol=1e-4)


@pytest.mark.parametrize('name', ALIBI)
def test_alibi_from_a_cache_is_theirs(name, tmp_path):
  model = saved(name, tmp_path)
  ours, params = huggingface.read(tmp_path).load()
  prompts = [FAR[0, :300].tolist(), FAR[1, :251].tolist()]
  found = generate(ours, params, prompts, max_new_tokens=24, sampling=Sampling(temperature=0))
  for prompt, completion in zip(prompts, found, strict=True):
    assert completion.tokens.tolist() == continued(model, prompt, 24)
