"""A cache that keeps no more of a layer than its band can see, against reading whole rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.decoding.steps import prompt_layout
from gpt_jax.models.attention import Banded, Dense, Strided
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.positions import Rotary
from gpt_jax.models.transformer import empty_cache
from gpt_jax.types import left_to_right
from tests.models.small import shrunk

WIDTH, SPARE, LENGTH, ROWS = 5, 8, 64, 3
MODELS = {
  'banded': (Banded(WIDTH),),
  'dense, banded': (Dense(), Banded(WIDTH)),
  'banded, strided': (Banded(WIDTH), Strided(4)),
}
READ = {  # tokens read at a time
  'one by one': (1,) * 40,
  'a few': (4, 3, 4, 1, 4, 4, 2, 4, 4, 4, 4, 1),
  'a prompt, one by one': (30, *(1,) * 12),
  'prompts longer than the ring': (20, 1, 19, 1, 2),
  'nearly the ring': (5, 13, 12, 1, 9),
}


def built(attention, stacked):
  cfg = dataclasses.replace(
    shrunk('llama2_70b', rotation=Rotary()), attention=attention, num_layers=2 * len(attention), stacked=stacked
  )
  model = LanguageModel(cfg)
  return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), int))


@pytest.mark.parametrize(
  ('case', 'stacked'),
  [('banded', True), ('dense, banded', False), pytest.param('banded, strided', True, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize('pieces', READ)
def test_a_ring_reads_as_whole_rows_do(pieces, case, stacked):
  """Rows of a batch stand at different places, as each piece is padded behind a part of its own of it."""
  model, params = built(MODELS[case], stacked)
  tokens = jax.random.randint(jax.random.key(1), (ROWS, LENGTH), 0, 20)
  want = model.apply(params, tokens)[0]
  cache = empty_cache(model.config, ROWS, LENGTH, SPARE)
  assert {layer.slots for layer in cache.layers} - {LENGTH} == {WIDTH + SPARE}
  read = jax.jit(lambda tokens, layout, cache: model.apply(params, tokens, layout, cache))
  rng, start = np.random.default_rng(0), np.zeros(ROWS, int)
  for size in READ[pieces]:
    count = rng.integers((size + 1) // 2, size + 1, ROWS)
    some = jnp.stack([tokens[row, at : at + size] for row, at in enumerate(start)])
    found, cache = read(some, prompt_layout(some, jnp.array(start), jnp.array(count)), cache.rewound(jnp.array(start)))
    cache = cache.rewound(jnp.array(start + count))
    for row in range(ROWS):
      np.testing.assert_allclose(
        found[row, : count[row]], want[row, start[row] : start[row] + count[row]], atol=2e-5, err_msg=f'{start}'
      )
    start += count
  assert start.max() > WIDTH + SPARE, 'the ring never came round'


def test_what_was_read_ahead_and_forgotten_leaves_no_trace():
  """As drafts that are refused: half the spare slots may be rewound."""
  model, params = built((Banded(WIDTH),), True)
  tokens = jax.random.randint(jax.random.key(2), (1, LENGTH), 0, 20)
  want, cache = model.apply(params, tokens)[0], empty_cache(model.config, 1, LENGTH, SPARE)
  read = jax.jit(lambda tokens, layout, cache: model.apply(params, tokens, layout, cache))
  for at in range(40):
    wrong = jnp.concatenate([tokens[:, at : at + 1], jnp.full((1, SPARE // 2 - 1), 7)], axis=1)
    layout = jax.tree.map(lambda x, at=at: x[:, at : at + SPARE // 2], left_to_right(tokens))
    found, cache = read(wrong, layout, cache)
    np.testing.assert_allclose(found[:, 0], want[:, at], atol=2e-5)
    cache = cache.rewound(jnp.array([at + 1]))


def test_a_ring_holds_less():
  cfg = dataclasses.replace(shrunk('llama2_70b'), attention=(Dense(), Banded(16)), num_layers=2)
  cache = jax.eval_shape(lambda: empty_cache(cfg, 1, 4096))
  assert [layer.slots for layer in cache.layers] == [4096, 16 + 128]
