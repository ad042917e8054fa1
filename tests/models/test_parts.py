"""Parts by name: every name makes its part, expressions nest, and what is not understood is said in one line."""

import dataclasses
import json

from flax import linen as nn
import jax.numpy as jnp
import pytest

from gpt_jax.models.attention import Banded, Dense, Fixed, Strided
from gpt_jax.models.deepnorm import DeepNet, Glm
from gpt_jax.models.families import FAMILIES
from gpt_jax.models.initialization import Normal, ScaledNormal, Xavier
from gpt_jax.models.layers import GatedMlp, Mlp, gelu_exact
from gpt_jax.models.lora import Lora
from gpt_jax.models.masks import Band, Causal, Prefix
from gpt_jax.models.parts import ARGUMENTS, PARTS, from_config, kernels_of, part, to_config
from gpt_jax.models.positions import (
  Alibi,
  FalconAlibi,
  Learned,
  Learned2D,
  LinearScaling,
  Llama3Scaling,
  NtkScaling,
  Rotary,
  Rotary2D,
  YarnScaling,
)
from gpt_jax.models.quantization import Int4, Int8
from gpt_jax.models.residual import Parallel, PostNorm, PreNorm
from gpt_jax.types import UserError

WRITTEN = {
  ('residual', 'pre'): PreNorm(),
  ('residual', 'post'): PostNorm(),
  ('residual', 'post(alpha=2.5, norm_embedding=True)'): PostNorm(2.5, norm_embedding=True),
  ('residual', 'post(alpha=deepnet)'): PostNorm(DeepNet()),
  ('residual', 'post(alpha=glm, norm_embedding=True)'): PostNorm(Glm(), norm_embedding=True),
  ('residual', 'parallel(shared_norm=False)'): Parallel(shared_norm=False),
  ('norm', 'layer'): nn.LayerNorm(epsilon=1e-5, use_fast_variance=False),
  ('norm', 'layer(use_bias=False)'): nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, use_bias=False),
  ('norm', 'rms(epsilon=1e-6)'): nn.RMSNorm(epsilon=1e-6),
  ('mlp', 'relu(64)'): Mlp(64, activation=nn.relu),
  ('mlp', 'gelu(64)'): Mlp(64, activation=nn.gelu),
  ('mlp', 'gelu_exact(64)'): Mlp(64, activation=gelu_exact),
  ('mlp', 'swiglu(64)'): GatedMlp(64, activation=nn.silu),
  ('mlp', 'geglu(hidden=64)'): GatedMlp(64, activation=nn.gelu),
  ('mlp', 'geglu_exact(64)'): GatedMlp(64, activation=gelu_exact),
  ('positions', 'learned(128)'): Learned(128),
  ('positions', 'learned_2d(128, stddev=0.01)'): Learned2D(128, stddev=0.01),
  ('rotation', 'rotary'): Rotary(),
  ('rotation', ' rotary(theta=1e5, fraction=0.5) '): Rotary(theta=100_000.0, fraction=0.5),
  ('rotation', 'rotary_2d'): Rotary2D(),
  ('rotation', 'rotary(scaling=linear(4.0))'): Rotary(scaling=LinearScaling(4.0)),
  ('rotation', 'rotary(scaling=ntk(4.0))'): Rotary(scaling=NtkScaling(4.0)),
  ('rotation', 'rotary(theta=5e5, scaling=llama3)'): Rotary(theta=500_000.0, scaling=Llama3Scaling()),
  ('rotation', 'rotary(scaling=llama3(factor=32.0))'): Rotary(scaling=Llama3Scaling(factor=32.0)),
  ('rotation', 'rotary(scaling=yarn(16.0, 2048))'): Rotary(scaling=YarnScaling(16.0, 2048)),
  ('score_bias', 'alibi'): Alibi(),
  ('score_bias', 'falcon_alibi'): FalconAlibi(),
  ('attention', 'dense'): (Dense(),),
  ('attention', 'banded(256)'): (Banded(256),),
  ('attention', 'dense, banded(256)'): (Dense(), Banded(256)),
  ('attention', '(dense, banded(256))'): (Dense(), Banded(256)),
  ('attention', 'dense(causal | prefix)'): (Dense(Causal() | Prefix()),),
  ('attention', 'strided(128), fixed(128, 8, summaries=2)'): (Strided(128), Fixed(128, 8, 2)),
  ('attention', 'strided(64, split=True)'): (Strided(64, split=True),),
  ('attention', 'banded(4, mask=(causal | prefix) & band(2))'): (Banded(4, (Causal() | Prefix()) & Band(2)),),
  ('init', 'normal(0.01)'): Normal(0.01),
  ('init', 'scaled_normal'): ScaledNormal(),
  ('init', 'xavier(gain=0.5)'): Xavier(gain=0.5),
  ('init', 'xavier(gain=glm)'): Xavier(gain=Glm()),
  ('init', 'xavier(gain=deepnet)'): Xavier(gain=DeepNet()),
  ('quantization', 'int8'): Int8(),
  ('quantization', 'int8(64)'): Int8(64),
  ('quantization', 'int4(group=64)'): Int4(group=64),
  ('lora', "lora(32, alpha=16, targets='query|value')"): Lora(32, 16, targets='query|value'),
}


@pytest.mark.parametrize(('field', 'text'), WRITTEN)
def test_text_makes_the_part(field, text):
  assert part(field, text) == WRITTEN[field, text]


def test_every_name_is_tried_above():
  for field, table in PARTS.items():
    texts = ' '.join(text for f, text in WRITTEN if f == field)
    assert all(name in texts for name in (*table, *ARGUMENTS.get(field, ())))


WRONG = {
  ('rotation', 'rotery'): "no part is named 'rotery'; did you mean 'rotary'?",
  ('rotation', 'rotary(scaling=lineer(2))'): "did you mean 'linear'?",
  ('rotation', 'rotary(base=1e5)'): "unexpected keyword argument 'base'",
  ('rotation', 'rotary(1e5'): 'was never closed',
  ('rotation', 'linear(2.0)'): "'linear(2.0)' is not a part",
  ('rotation', 'rotary, rotary_2d'): 'is not a part',
  ('residual', '3'): "'3' is not a part",
  ('residual', 'pre | post'): "'pre | post' is not a part",
  ('residual', ''): 'write NAME',
  ('residual', 'none'): "no part is named 'none'",
  ('mlp', 'swiglu'): 'hidden',
  ('mlp', 'gelu(64, **{})'): 'NAME',
  ('attention', 'banded'): 'width',
  ('attention', 'causal'): "'causal' is not a part",
  ('attention', 'dense, causal'): "'causal' is not a part",
  ('attention', 'dense(causal + prefix)'): "'causal + prefix' is not a part",
  ('attention', '()'): 'is not a part',
  ('init', '__import__("os").system("true")'): 'is not a part',
  ('init', 'normal.__class__'): 'is not a part',
  ('quantization', 'int4(0)'): 'group = 0 must be positive',
  ('lora', 'lora(rank=0)'): 'rank = 0 must be at least 1',
}


@pytest.mark.parametrize(('field', 'text'), WRONG)
def test_what_is_not_a_part_is_refused_in_one_line(field, text):
  with pytest.raises(UserError) as error:
    from_config({'family': 'gpt2_small', field: text})
  message = str(error.value)
  assert message.startswith(f'config.model.{field} = {text!r}: ') and '\n' not in message
  assert WRONG[field, text] in message


@pytest.mark.parametrize('family', FAMILIES)
def test_every_family_is_reachable(family):
  assert from_config({'family': family, 'num_layers': None}) == FAMILIES[family]


def test_every_family_can_be_written():
  for family, config in FAMILIES.items():
    fields = to_config(config)
    assert from_config(json.loads(json.dumps(fields))) == config, family
  changed = {'attention': 'dense(causal | prefix & band(3)), banded(8)', 'remat': 'full', 'logit_softcap': 3.0}
  other = from_config({'family': 'llama2_7b', 'rotation': 'rotary(scaling=llama3)', 'qkv_bias': True, **changed})
  assert from_config(to_config(other)) == other
  with pytest.raises(UserError, match=r'config\.model\.mlp: a Mlp of these fields has no name'):
    to_config(dataclasses.replace(other, mlp=Mlp(8, activation=jnp.sin)))


def test_fields_replace_those_of_the_family():
  fields = {'residual': 'post', 'positions': 'none', 'rotation': 'rotary', 'num_layers': 3, 'mlp': None}
  cfg = from_config({'family': 'gpt2_small', **fields})
  want = dataclasses.replace(
    FAMILIES['gpt2_small'], residual=PostNorm(), positions=None, rotation=Rotary(), num_layers=3
  )
  assert cfg == want
  assert from_config({'family': 'gpt2_small', 'remat': 'none'}).remat is None
  assert from_config({'family': 'gpt2_small', 'remat': 'full', 'dtype': 'bfloat16'}).remat == 'full'


@pytest.mark.parametrize(
  ('model', 'message'),
  [
    ({'family': 'gpt2_smal'}, "config.model.family = 'gpt2_smal' is unknown; did you mean 'gpt2_small'?"),
    ({'family': 'gpt2_small', 'num_layer': 3}, "config.model.num_layer is unknown; did you mean 'num_layers'?"),
    (
      {'family': 'gpt2_small', 'attention_kernel': 'splsh'},
      "config.model.attention_kernel = 'splsh' is unknown; did you mean 'splash'?",
    ),
    ({'family': 'gpt2_small', 'remat': 'dot'}, "config.model.remat = 'dot' is unknown; did you mean 'dots'?"),
    ({'family': 'gpt2_small', 'num_kv_heads': 5}, 'config.model: num_heads = 12 must be a multiple of 5'),
    ({'family': 'gpt2_small', 'num_layers': 0}, 'config.model: num_layers = 0'),
    ({'family': 'gpt2_small', 'dtype': 'float31'}, 'config.model: data type'),
  ],
)
def test_bad_fields_are_refused(model, message):
  with pytest.raises(UserError) as error:
    from_config(model)
  assert str(error.value).startswith(message)


def test_kernels_of_a_model_are_said_by_pattern():
  fields = {'attention': 'dense, banded(8)', 'num_layers': 2}
  config = from_config({'family': 'llama2_7b', **fields})
  assert kernels_of(config, 1, 64) == ['dense: plain (scores are few)', 'banded(width=8): plain (scores are few)']
  assert kernels_of(config, 1, 1024)[0] == 'dense: chunked (rows are long)'
  dropped = from_config({'family': 'llama2_7b', **fields, 'attention_dropout': 0.1, 'attention_kernel': 'splash'})
  assert kernels_of(dropped, 1, 1024)[0].endswith('not splash, as attention weights are dropped)')
