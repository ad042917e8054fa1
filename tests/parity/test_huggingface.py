"""Models of transformers, made at random in odd shapes: read, computed, written, and read by transformers again."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.interop import huggingface

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
pytestmark = pytest.mark.parity

LLAMA3 = {
  'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
  'original_max_position_embeddings': 32, 'rope_theta': 500.0,
}  # fmt: skip
LINEAR = {'rope_type': 'linear', 'factor': 4.0, 'rope_theta': 10_000.0}
GPT = {'n_embd': 24, 'n_layer': 3, 'n_head': 3, 'n_positions': 128, 'vocab_size': 67}
LLAMA = {
  'hidden_size': 36, 'num_hidden_layers': 2, 'num_attention_heads': 6, 'num_key_value_heads': 3,
  'intermediate_size': 40, 'vocab_size': 67, 'head_dim': 10, 'max_position_embeddings': 128,
}  # fmt: skip
FALCON = {'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'vocab_size': 67, 'alibi': False}
MODELS = {
  'gpt1': ('OpenAIGPT', GPT),
  'gpt2': ('GPT2', GPT),
  'gpt2 relu, narrow': ('GPT2', {**GPT, 'activation_function': 'relu', 'n_inner': 17}),
  'gpt2 exact gelu, untied': ('GPT2', {**GPT, 'activation_function': 'gelu', 'tie_word_embeddings': False}),
  'llama multi-head, tied': ('Llama', {**LLAMA, 'num_key_value_heads': 6, 'tie_word_embeddings': True}),
  'llama grouped, biases': ('Llama', {**LLAMA, 'attention_bias': True, 'mlp_bias': True}),
  'llama multi-query, linear': ('Llama', {**LLAMA, 'num_key_value_heads': 1, 'rope_parameters': LINEAR}),
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
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 67, (3, 40))


def original(kind: str, fields: dict) -> 'transformers.PreTrainedModel':
  """Every parameter random, so that none can hide at 0 or 1."""
  torch.manual_seed(0)
  config = getattr(transformers, f'{kind}Config')(**fields)
  head = {'OpenAIGPT': 'OpenAIGPTLMHeadModel', 'GPT2': 'GPT2LMHeadModel'}.get(kind, f'{kind}ForCausalLM')
  model = getattr(transformers, head)(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      mean = float('norm' in name or 'ln_' in name) * float(name.endswith('weight'))
      parameter.copy_(mean + 0.15 * torch.randn_like(parameter))
  return model


@pytest.fixture(scope='module', params=MODELS, ids=lambda name: name.replace(' ', '_'))
def pair(request, tmp_path_factory):
  """A model of transformers, and the folder it saved."""
  model = original(*MODELS[request.param])
  folder = tmp_path_factory.mktemp('model')
  model.save_pretrained(folder)
  return model, folder


def logits(folder: pathlib.Path) -> np.ndarray:
  model, params = huggingface.read(folder).load()
  return np.asarray(jax.jit(model.apply)(params, jnp.asarray(TOKENS))[0])


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
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
  assert type(again) is type(model)
  with torch.no_grad():
    theirs, back = (m(torch.from_numpy(TOKENS)).logits.numpy() for m in (model, again))
  np.testing.assert_allclose(back, theirs, atol=1e-5)
  before, after = load_file(folder / 'model.safetensors'), load_file(tmp_path / 'model.safetensors')
  for name in set(before) & set(after):
    np.testing.assert_array_equal(after[name], before[name], err_msg=name)
  if model_type != 'falcon':  # 7B's form is written as 40B's
    assert set(after) == set(before)


def test_greedy_continuations_of_a_padded_batch_are_theirs(pair):
  model, folder = pair
  ours, params = huggingface.read(folder).load()
  prompts = [[3, 1, 4, 1, 5, 9], [2], [6, 5, 3]]
  found = generate(ours, params, prompts, max_new_tokens=64, sampling=Sampling(temperature=0))
  for prompt, completion in zip(prompts, found, strict=True):
    with torch.no_grad():
      theirs = model.generate(
        torch.tensor([prompt]), max_new_tokens=64, min_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
      )
    assert completion.tokens.tolist() == theirs[0, len(prompt) :].tolist()
