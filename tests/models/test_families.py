"""Families at full size, by shape alone, and at small size, by behaviour."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.data.infilling import blanked
from gpt_jax.data.marks import Marks
from gpt_jax.models.families import FAMILIES
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.transformer import empty_cache, unstack
from gpt_jax.types import left_to_right
from tests.models.small import LENGTH, VOCABULARY, forward, logits, parameters, random_tokens, shrunk

# Counts of the released models (GPT-2's: the errata; LLaMA, Falcon, ChatGLM, SmolLM2: the weights' own totals). GPT-3's
# and GLM's are worked out by hand from the published shapes: papers round.
PUBLISHED = {
  'gpt1': 116_534_784,
  'gpt2_small': 124_439_808,
  'gpt2_medium': 354_823_168,
  'gpt2_large': 774_030_080,
  'gpt2_xl': 1_557_611_200,
  'gpt3_125m': 125_226_240,
  'gpt3_350m': 355_871_744,
  'gpt3_760m': 760_300_032,
  'gpt3_1_3b': 1_315_723_264,
  'gpt3_2_7b': 2_651_553_280,
  'gpt3_6_7b': 6_658_404_352,
  'gpt3_13b': 12_853_386_240,
  'gpt3_175b': 174_604_259_328,
  'llama_7b': 6_738_415_616,
  'llama_13b': 13_015_864_320,
  'llama_33b': 32_528_943_616,
  'llama_65b': 65_285_660_672,
  'llama2_7b': 6_738_415_616,
  'llama2_13b': 13_015_864_320,
  'llama2_34b': 33_743_970_304,
  'llama2_70b': 68_976_648_192,
  'falcon_7b': 6_921_720_704,
  'falcon_40b': 41_303_293_952,
  'glm_large': 334_688_256,
  'glm_10b': 9_880_682_496,
  'glm_130b': 128_697_794_560,
  'chatglm_6b': 6_173_286_400,
  'chatglm2_6b': 6_243_584_000,
  'smollm2_135m': 134_515_008,
}


def test_every_family_has_a_published_count():
  assert PUBLISHED.keys() == FAMILIES.keys()


@pytest.mark.parametrize('family', FAMILIES)
def test_full_size_has_the_published_number_of_parameters(family):
  model = LanguageModel(FAMILIES[family].evaluated())
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == PUBLISHED[family]


SMALL = [
  'gpt1',
  'gpt2_small',
  'gpt3_125m',
  'llama2_70b',
  'falcon_7b',
  'falcon_40b',
  'glm_10b',
  'glm_130b',
  'chatglm_6b',
  'chatglm2_6b',
]


@pytest.mark.parametrize('family', SMALL)
def test_later_tokens_are_not_seen(family):
  cfg = shrunk(family)
  tokens = random_tokens()
  before = logits(cfg, parameters(cfg), tokens)
  after = logits(cfg, parameters(cfg), tokens.at[:, 7].set((tokens[:, 7] + 1) % VOCABULARY))
  np.testing.assert_allclose(before[:, :7], after[:, :7], atol=1e-5)
  assert np.all(np.abs(before[:, 7:] - after[:, 7:]).max(axis=-1)[:, 0] > 1e-4)
  assert np.abs(before[:, -1] - after[:, -1]).max() > 1e-5


# Layers come stacked or not whatever the family: two patterns, and two-dimensional positions, stand for the rest.
@pytest.mark.parametrize(
  ('family', 'stacked'), [*((family, True) for family in SMALL), ('gpt3_125m', False), ('chatglm_6b', False)]
)
def test_reading_with_a_cache_is_the_full_forward(family, stacked):
  """Five tokens at once, then one by one; the looped model reads unstacked parameters."""
  cfg = shrunk(family)
  tokens, params = random_tokens(), parameters(cfg)
  want = logits(cfg, params, tokens)
  if not stacked:
    cfg, params = dataclasses.replace(cfg, stacked=False), unstack(params)
  layout = left_to_right(tokens)
  step = forward(cfg)
  cache, got = empty_cache(cfg, 2, LENGTH + 3), []
  for start, stop in [(0, 5), *((t, t + 1) for t in range(5, LENGTH))]:
    piece = jax.tree.map(lambda x, start=start, stop=stop: x[:, start:stop], layout)
    out, cache = step(params, tokens[:, start:stop], piece, cache)
    got.append(out)
  np.testing.assert_allclose(np.concatenate(got, axis=1), want, atol=3e-5)
  assert cache.length.tolist() == [LENGTH] * 2


@pytest.mark.parametrize('family', ['glm_10b', 'glm_130b', 'chatglm_6b'])
def test_glm_reads_its_prefix_both_ways(family):
  cfg = shrunk(family)
  tokens = random_tokens()
  layout = left_to_right(tokens)
  layout = layout.replace(prefix=layout.order < 4)
  changed = tokens.at[:, 3].set((tokens[:, 3] + 1) % VOCABULARY)
  seen = logits(cfg, parameters(cfg), tokens, layout) - logits(cfg, parameters(cfg), changed, layout)
  assert np.abs(seen[:, 0]).max() > 1e-4


@pytest.mark.parametrize('family', ['glm_10b', 'chatglm_6b'])
def test_nothing_leaks_from_a_blank_to_the_text_or_to_blanks_written_before(family):
  """A row as training has it: of each blank in turn all that stands in it is changed, and who may not see it asked."""
  cfg, generator = shrunk(family), np.random.default_rng(0)
  marks = Marks(word=VOCABULARY - 1, sentence=0, document=0, start=VOCABULARY - 2, end=VOCABULARY - 3)
  text = generator.integers(0, VOCABULARY - 3, (1, 7))
  blanks, turns = np.array([[0, 1, 1, 0, 2, 0, 3]]), np.array([[1.0, 2.0, 0.0]])
  made = blanked(text, np.array([7]), blanks, turns, np.array([marks.word]), marks, 14)
  layout = jax.tree.map(jnp.asarray, made['layout'])
  params, tokens = parameters(cfg), jnp.asarray(made['tokens'])
  before = logits(cfg, params, tokens, layout)
  spans = [[6, 7], [8, 9, 10], [11, 12]]  # the third blank is written first; each behind its mark
  assert [int(token) for token in made['tokens'][0, [6, 8, 11]]] == [marks.start] * 3
  for span in spans:
    changed = tokens.at[0, jnp.array(span)].set((tokens[0, jnp.array(span)] + 1) % (VOCABULARY - 3))
    moved = np.abs(logits(cfg, params, changed, layout) - before)[0].max(axis=-1)
    assert not moved[: span[0]].any(), 'what stands before it, part A first of all, has seen it'
    assert (moved[span[0] : 13] > 1e-6).all(), 'what is written behind it does not see it'


def test_configs_hash_and_compare_by_value():
  for cfg in FAMILIES.values():
    assert cfg == dataclasses.replace(cfg) and hash(cfg) == hash(dataclasses.replace(cfg))
  assert FAMILIES['llama2_7b'] != FAMILIES['llama2_13b']
