"""GGUF files of our own writing as others open them.

transformers wants accelerate for it. llama.cpp is asked where llama-cpp-python is installed, which has to be compiled.
"""

import dataclasses
import pathlib

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.data import assets
from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.interop import gguf
from gpt_jax.interop.tensors import Pretrained
from gpt_jax.models.families import FAMILIES
from gpt_jax.models.positions import LinearScaling, Llama3Scaling, Rotary
from gpt_jax.models.transformer import TransformerConfig
from tests.models.small import forward, parameters, shrunk

pytestmark = pytest.mark.parity

# Of files of GPT-2, transformers reads neither context_length nor feed_forward_length.
WIDE, LENGTH = FAMILIES['gpt2_small'].mlp.copy(hidden=256), FAMILIES['gpt2_small'].positions
GPT2 = shrunk('gpt2_small', model_dim=64, mlp=WIDE, positions=LENGTH)
MODELS = {
  'llama grouped, untied': shrunk('llama2_70b', model_dim=64, norm=shrunk('llama_7b').norm),
  'llama multi-query, tied': shrunk('smollm2_135m', model_dim=64, num_kv_heads=1),
  'llama linear scaling': shrunk('llama2_7b', model_dim=64, rotation=Rotary(500.0, scaling=LinearScaling(4.0))),
  'llama llama3 scaling': shrunk('llama2_7b', model_dim=64, rotation=Rotary(500.0, scaling=Llama3Scaling(8, 1, 4, 16))),
  'llama wide heads': shrunk('llama2_7b', model_dim=64, head_dim=32),
  'gpt2': GPT2,
  'gpt2 untied': dataclasses.replace(GPT2, tie_embeddings=False),
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 31, 40)

# "What is the capital of France?" under the model's chat template, and its answer.
QUESTION = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2,
            198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]  # fmt: skip


def saved(config: TransformerConfig, tmp_path: pathlib.Path) -> pathlib.Path:
  path = tmp_path / 'model.gguf'
  gguf.save(path, config, parameters(config), context=64)
  return path


def logits(config: TransformerConfig) -> np.ndarray:
  return np.asarray(forward(config)(parameters(config), jnp.asarray(TOKENS[None]))[0])[0]


@pytest.fixture(scope='module')
def smollm2() -> Pretrained:
  (path,) = assets.asset('smollm2').rglob('*.gguf')
  return gguf.read(path)


# ---- transformers ---------------------------------------------------------------------------------------------------


def of_transformers(path: pathlib.Path, tokens: np.ndarray) -> np.ndarray:
  pytest.importorskip('accelerate')
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
  with torch.no_grad():
    return model.eval()(torch.from_numpy(tokens[None])).logits.numpy()[0]


# It reads nothing of a scaling in files of LLaMA.
@pytest.mark.parametrize('name', [name for name in MODELS if 'scaling' not in name])
def test_transformers_gives_the_same_logits(name, tmp_path, monkeypatch):
  # It counts the tokens of a file, and looks at no llama.vocab_size.
  monkeypatch.setattr(gguf, 'write_vocabulary', lambda _, size: {'tokenizer.ggml.tokens': [f't{i}' for i in range(31)]})
  ours = logits(MODELS[name])
  np.testing.assert_allclose(of_transformers(saved(MODELS[name], tmp_path), TOKENS), ours, atol=1e-4)
  assert np.abs(ours).max() > 0.1


@pytest.mark.assets
def test_transformers_gives_the_same_logits_of_smollm2(smollm2):
  model, params = smollm2.load()
  ours = jax.jit(model.apply)(params, jnp.asarray([QUESTION]))[0][0]
  np.testing.assert_allclose(of_transformers(pathlib.Path(smollm2.name), np.array(QUESTION)), ours, atol=2e-4)


# ---- llama.cpp ------------------------------------------------------------------------------------------------------


def opened(path: pathlib.Path):
  """By llama.cpp, with keys and values in float32."""
  llama_cpp = pytest.importorskip('llama_cpp')
  return llama_cpp.Llama(
    str(path), n_ctx=256, n_threads=2, logits_all=True, verbose=False, type_k=llama_cpp.GGML_TYPE_F32,
    type_v=llama_cpp.GGML_TYPE_F32,
  )  # fmt: skip


def of_llama_cpp(path: pathlib.Path, tokens: np.ndarray) -> np.ndarray:
  model = opened(path)
  model.eval(tokens.tolist())
  return np.array(model.scores[: len(tokens)])


def gelu_by_table(x: jax.Array) -> jax.Array:
  """As llama.cpp has it on a CPU: from a table of half precision."""
  half = nn.gelu(x.astype('float16').astype('float32'))
  return half.astype('float16').astype('float32')


@pytest.mark.parametrize('name', MODELS)
def test_llama_cpp_gives_the_same_logits(name, tmp_path):
  config = MODELS[name]
  path = saved(config, tmp_path)
  if config.mlp.activation is nn.gelu:
    config = dataclasses.replace(config, mlp=config.mlp.copy(activation=gelu_by_table))
  np.testing.assert_allclose(of_llama_cpp(path, TOKENS), logits(config), atol=5e-4)


@pytest.mark.assets
@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_llama_cpp_opens_smollm2_again_and_gives_the_same_answer(smollm2, dtype, tmp_path):
  pytest.importorskip('llama_cpp')
  model, params = smollm2.load()
  path = tmp_path / 'model.gguf'
  gguf.save(path, model.config, params, dtype=dtype, context=smollm2.context, files=smollm2.files)
  ours = generate(model, params, [QUESTION], max_new_tokens=16, sampling=Sampling(temperature=0))[0].tokens.tolist()
  theirs = opened(path)
  found = []
  for token in theirs.generate(QUESTION, temp=0.0, repeat_penalty=1.0):
    found.append(token)
    if len(found) == len(ours):
      break
  assert found == ours
  assert theirs.detokenize(ours).decode().startswith('The capital of France is Paris.')
