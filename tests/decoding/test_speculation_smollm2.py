"""A real model: greedy text of 100 prompts is the same token by token, with every draft, alone and in batches."""

import jax
import numpy as np
import pytest

from experiments import language
from gpt_jax.data.sources import documents
from gpt_jax.decoding.drafts import Alone, MedusaDraft, PromptLookup, first_layers
from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.decoding.tree import Tree
from gpt_jax.models.heads import Medusa, medusa_params, unembedding_table

pytestmark = pytest.mark.assets

NUMBER, NEW_TOKENS = 100, 24
TREE = Tree((-1, 0, 0, 0, 1, 1, 2), (0, 0, 1, 2, 0, 1, 0))


@pytest.fixture(scope='module')
def trained():
  return language.load('asset:smollm2', stacked=False)


@pytest.fixture(scope='module')
def prompts(trained):
  """Beginnings of lines of books, every fifth of which stands there twice, so that a look-up finds something.

  All have 16 tokens: a program is compiled for each length.
  """
  lines = [line for text in documents('asset:gutenberg', 'train', 0.1) for line in text.splitlines() if len(line) > 80]
  ids = [trained.tokenizer.encode(lines[i * len(lines) // NUMBER]).tolist()[:16] for i in range(NUMBER)]
  return [line[:8] * 2 if i % 5 == 0 else line for i, line in enumerate(ids)]


def texts(trained, prompts, batch, draft):
  rows = []
  for start in range(0, NUMBER, batch):
    found = generate(
      trained.model, trained.params, prompts[start : start + batch], max_new_tokens=NEW_TOKENS, sampling=Sampling(0),
      draft=draft, stride=NEW_TOKENS,
    )  # fmt: skip
    rows += found
  return rows


@pytest.fixture(scope='module')
def plain(trained, prompts):
  return [row.tokens.tolist() for row in texts(trained, prompts, 1, Alone())]


def heads(trained):
  """As they begin, guessing what the model says next: seldom right, which is no matter here."""
  medusa = Medusa(trained.model.config, 2, shared=True)
  return MedusaDraft(medusa_params(medusa, unembedding_table(medusa.config, trained.params)), medusa, TREE)


DRAFTS = {
  'alone': lambda trained: Alone(),
  'lookup': lambda trained: PromptLookup(6),
  'own layers': lambda trained: first_layers(trained.model, trained.params, 24, 3),
  'medusa': heads,
}


@pytest.mark.parametrize('batch', [1, 8])
@pytest.mark.parametrize('name', DRAFTS)
def test_greedy_text_is_the_same_token_by_token(name, batch, trained, prompts, plain):
  if (name, batch) == ('alone', 1):
    pytest.skip('what the others are compared with')
  found = texts(trained, prompts, batch, DRAFTS[name](trained))
  other = [i for i, (row, expected) in enumerate(zip(found, plain, strict=True)) if row.tokens.tolist() != expected]
  assert not other, f'{len(other)} of {NUMBER} texts differ'
  if name != 'alone':
    assert sum(row.kept for row in found) > 0, 'the draft must be right somewhere, or this shows nothing'
    assert sum(row.steps for row in found) < NUMBER * (NEW_TOKENS - 1)
  jax.clear_caches()
  assert np.all([len(row.tokens) == NEW_TOKENS for row in found])
