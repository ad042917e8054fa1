"""Several tokens a step leave the text as it was: the same when greedy, of the same distribution when drawn."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gpt_jax.decoding import steps
from gpt_jax.decoding.acceptance import Rejection, Typical
from gpt_jax.decoding.conversation import Conversation
from gpt_jax.decoding.drafts import Bigram, MedusaDraft, ModelDraft, PromptLookup, Text, count_bigrams, first_layers
from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import RepetitionPenalty, Sampling, Seen
from gpt_jax.decoding.steps import unstacked
from gpt_jax.decoding.tree import Tree, chain
from gpt_jax.models.heads import Medusa
from gpt_jax.models.positions import Learned
from gpt_jax.types import UserError
from tests.decoding.test_generate import (
  GREEDY,
  PARTS,
  PROMPTS,
  VOCABULARY,
  base,
  build,
  full_forward,
  greedy_by_brute_force,
  letters,
)  # fmt: skip

BUSHY = Tree((-1, 0, 0, 0, 1, 1, 2, 4, 4, 5, 7), (0, 0, 1, 2, 0, 1, 0, 0, 2, 0, 0))
LONG = 21
ROOMY = {
  **PARTS,
  'learned': dataclasses.replace(PARTS['learned'], positions=Learned(40)),
  'banded': dataclasses.replace(PARTS['banded'], num_layers=4),
}


def own_layers(config, length=3):
  return first_layers(*unstacked(*build(config)), len(config.attention), length)


def itself(config, length=3):
  model, params = unstacked(*build(config))
  return ModelDraft(params, model, length)


def heads(config, tree, seed=3, vocabulary=None):
  """Medusa's heads, with parameters that prefer some tokens."""
  size = None if vocabulary is None else len(vocabulary)
  module = Medusa(config, num_heads=tree.max_depth, draft_vocab_size=size)
  params = module.init(jax.random.key(0), jnp.zeros((1, config.model_dim)))
  keys = iter(jax.random.split(jax.random.key(seed), 9))
  drawn = jax.tree.map(lambda x: 0.5 * jax.random.normal(next(keys), x.shape), params)
  return MedusaDraft(drawn, module, tree, None if vocabulary is None else jnp.asarray(vocabulary))


def stranger(config):
  """Another model of the same vocabulary."""
  return itself(dataclasses.replace(base, vocab_size=config.vocab_size, positions=Learned(60), num_layers=1))


def counted(config):
  text = np.random.default_rng(0).integers(0, config.vocab_size - 1, 400)
  return count_bigrams(text, config.vocab_size, length=2, kept=4)


DRAFTS = {
  'lookup': lambda config: PromptLookup(5, 2),
  'own layers': own_layers,
  'itself': itself,
  'stranger': stranger,
  'bigrams': counted,
  'medusa, chain': lambda config: heads(config, chain(3)),
  'medusa, tree': lambda config: heads(config, BUSHY),
  'medusa, half the tokens': lambda config: heads(config, BUSHY, vocabulary=np.arange(0, config.vocab_size, 2)),
  'medusa, chain of half': lambda config: heads(config, chain(2), vocabulary=np.arange(1, config.vocab_size, 2)),
}


@functools.cache
def alone(config, sampling=GREEDY, **how):
  return generate(*build(config), PROMPTS, max_new_tokens=LONG, sampling=sampling, stride=8, seed=2, **how)


def slow(*values):
  return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(('parts', 'draft'), [
  ('rotary, grouped queries', 'medusa, tree'), ('rotary, grouped queries', 'stranger'), ('banded', 'medusa, tree'),
  ('learned', 'medusa, half the tokens'), ('prefix', 'lookup'), slow('banded', 'own layers'),
  slow('prefix', 'medusa, tree'), slow('learned', 'medusa, tree'),
  slow('alibi, one key head', 'medusa, tree'), slow('alibi, one key head', 'own layers'),
  *(slow('rotary, grouped queries', draft) for draft in DRAFTS if draft not in ('medusa, tree', 'stranger')),
])  # fmt: skip
def test_greedy_text_is_the_same_token_by_token(parts, draft):
  config = ROOMY[parts]
  how = {'sampling': GREEDY, 'stride': 8, 'draft': DRAFTS[draft](config)}
  found = generate(*build(config), PROMPTS, max_new_tokens=LONG, **how)
  for mine, theirs in zip(found, alone(config), strict=True):
    assert mine.tokens.tolist() == theirs.tokens.tolist()
    assert mine.finish == 'length'
    np.testing.assert_allclose(mine.log_probabilities, theirs.log_probabilities, atol=1e-4)
    assert theirs.steps == LONG - 1  # the prompt's reading drew the first
    assert mine.steps <= theirs.steps
    assert mine.kept <= mine.tried


def test_the_model_agrees_with_itself():
  """All candidates are kept, so each step gives one more than were proposed."""
  config = PARTS['rotary, grouped queries']
  for result in generate(
    *build(config), PROMPTS, max_new_tokens=1 + 5 * 4, sampling=GREEDY, draft=itself(config, 3), stride=32
  ):
    assert result.steps == 5
    assert result.kept == result.tried == 15
  warm = Sampling(0.8, top_k=9)
  for result in generate(*build(config), PROMPTS, max_new_tokens=21, sampling=warm, draft=itself(config, 3), seed=4):
    assert result.kept == result.tried


def test_heads_that_know_the_text_are_believed():
  """A tree whose guesses are right all the way down gives its depth and one more."""
  config = ROOMY['learned']
  truth = alone(config)[0].tokens.tolist()

  @dataclasses.dataclass(frozen=True)
  class Oracle(PromptLookup):
    tree: Tree = BUSHY

    def propose(self, state, text, sampling, keys):
      at = text.last[:, None] - (len(PROMPTS[0]) - 1)
      ahead = jnp.asarray([*truth, *[0] * 30])[at + jnp.arange(self.tree.max_depth)]
      right = jnp.array([0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1])[1:]  # the way 0, 1, 4, 7, 10
      guess = ahead[:, self.tree.depths[1:] - 1]
      proposal = PromptLookup.propose(PromptLookup(10), state, text, sampling, keys)
      return proposal.replace(tokens=jnp.where(right, guess, (guess + 1) % VOCABULARY))

  jax.tree_util.register_static(Oracle)
  (result,) = generate(*build(config), PROMPTS[:1], max_new_tokens=LONG, sampling=GREEDY, draft=Oracle(), stride=32)
  assert result.tokens.tolist() == truth
  assert result.steps == 4  # 1 + 4 * 5


def test_heads_with_a_vocabulary_of_their_own_propose_of_it():
  known = np.arange(1, VOCABULARY, 2)
  draft = heads(ROOMY['learned'], BUSHY, vocabulary=known)
  state = jax.random.normal(jax.random.key(0), (2, 32))
  text = Text(jnp.zeros((2, 8), jnp.int32), jnp.zeros(2, jnp.int32), jnp.full(2, 8))
  likeliest = np.argsort(-np.asarray(draft.heads.apply(draft.params, state)), axis=-1)
  found = draft.propose(state, text, GREEDY, jax.random.split(jax.random.key(0), 2)).tokens
  for node, (depth, choice) in enumerate(zip(BUSHY.depths[1:], BUSHY.choices[1:], strict=True)):
    assert found[:, node].tolist() == known[likeliest[:, depth - 1, choice]].tolist()


def test_a_stop_id_within_what_was_kept_ends_the_row():
  config = PARTS['rotary, grouped queries']
  free = alone(config)
  stop = int(free[0].tokens[6])
  found = generate(
    *build(config), PROMPTS, max_new_tokens=LONG, sampling=GREEDY, stop_ids=[stop], draft=itself(config), stride=8
  )
  for mine, theirs in zip(found, free, strict=True):
    tokens = theirs.tokens.tolist()
    wanted = tokens[: tokens.index(stop) + 1] if stop in tokens else tokens
    assert mine.tokens.tolist() == wanted
    assert mine.finish == ('stop' if stop in tokens else 'length')
  word = letters(free[1].tokens[4:7])
  for result in generate(
    *build(config), PROMPTS[1:2], max_new_tokens=LONG, sampling=GREEDY, stop=[word], decode=letters,
    draft=itself(config), stride=8,
  ):  # fmt: skip
    assert letters(result.tokens).endswith(word)
    assert letters(result.tokens).find(word) == len(result.tokens) - len(word)


@pytest.mark.parametrize('draft', [slow('lookup'), 'own layers', slow('medusa, tree')])
def test_the_whole_context_can_be_used(draft):
  """The last candidates stand behind the learned positions, and are never kept."""
  config = PARTS['learned']  # 24
  prompt = [1, 2, 3] * 3
  run = functools.partial(generate, *build(config), [prompt], max_new_tokens=15, sampling=GREEDY)
  assert run(draft=DRAFTS[draft](config))[0].tokens.tolist() == run()[0].tokens.tolist()


@pytest.mark.slow
def test_a_conversation_keeps_its_draft():
  config = ROOMY['rotary, grouped queries']
  for name in ('own layers', 'medusa, tree'):
    talk, text = Conversation(*build(config), draft=DRAFTS[name](config)), list(PROMPTS[0])
    for said in ([1, 2, 3], [7] * 20, []):
      pieces = list(talk.stream(text, max_new_tokens=9, sampling=GREEDY, stride=4))
      added = np.concatenate([piece.tokens for piece in pieces]).tolist()
      assert added == greedy_by_brute_force(config, text, 9)
      text += [*added, *said]


@pytest.mark.parametrize('draft', [slow('lookup'), slow('own layers'), 'medusa, tree'])
def test_processors_see_the_path_to_each_candidate(draft):
  config = ROOMY['banded']
  sampling = Sampling(0, processors=(RepetitionPenalty(1.8),))
  found = generate(
    *build(config), PROMPTS, max_new_tokens=LONG, sampling=sampling, draft=DRAFTS[draft](config), stride=8
  )
  plain = alone(config, sampling)
  assert [r.tokens.tolist() for r in found] == [r.tokens.tolist() for r in plain]
  assert [r.tokens.tolist() for r in plain] != [r.tokens.tolist() for r in alone(config)]


def test_nothing_compiles_twice_within_a_bucket():
  model, params = unstacked(*build(ROOMY['learned']))
  draft = own_layers(ROOMY['learned'])
  sizes = lambda: (steps.prefill._cache_size(), steps.decode_tokens._cache_size())
  run = functools.partial(generate, model, params, sampling=GREEDY, stride=4, draft=draft)
  run(PROMPTS, max_new_tokens=5)
  before = sizes()
  run([[5], [6, 7], [8] * 12], max_new_tokens=7, stop_ids=(1, 2), seed=3)
  assert sizes() == before


def test_samples_of_a_prompt_share_its_reading():
  config = ROOMY['learned']
  how = {'max_new_tokens': 9, 'seed': 5, 'stride': 4}
  shared = generate(*build(config), PROMPTS[:2], num_samples=3, **how)
  apart = generate(*build(config), [PROMPTS[0]] * 3 + [PROMPTS[1]] * 3, **how)
  assert [r.tokens.tolist() for r in shared] == [r.tokens.tolist() for r in apart]
  assert len({tuple(r.tokens.tolist()) for r in shared}) == 6


# ---- distributions -------------------------------------------------------------------------------------------------

FEW = 6
TINY = dataclasses.replace(PARTS['learned'], vocab_size=FEW)
ROWS, DRAWN = 6000, 3
START = [2, 5, 2, 5]


@functools.cache
def exact(sampling: Sampling) -> np.ndarray:
  """The probability of each sequence of DRAWN tokens, by reading every beginning whole."""
  joint = np.zeros((FEW,) * DRAWN)
  for tokens in itertools.product(range(FEW), repeat=DRAWN):
    logits = full_forward(TINY)([*START, *tokens], len(START))[len(START) - 1 : -1]
    p = np.exp(sampling.log_probabilities(jnp.asarray(logits)))
    joint[tokens] = np.prod(p[np.arange(DRAWN), tokens])
  return joint


@pytest.mark.parametrize(('draft', 'sampling'), [
  ('own layers', Sampling(1.0, top_p=0.8)), ('lookup', Sampling(0.6)), ('medusa, chain of half', Sampling(0.9)),
  slow('medusa, chain', Sampling(1.3, min_p=0.1)),
  slow('alone', Sampling(0.6)), slow('bigrams', Sampling(1.0)), slow('stranger', Sampling(1.7)),
  slow('own layers', Sampling(0.6)), slow('own layers', Sampling(1.7, top_k=4)),
])  # fmt: skip
def test_drawn_text_has_the_models_distribution(draft, sampling):
  """Chi-square over the joint distribution of three tokens: a step's second and third are candidates, kept or not."""
  more = {} if draft == 'alone' else {'draft': DRAFTS[draft](TINY)}
  found = generate(*build(TINY), [START], num_samples=ROWS, max_new_tokens=DRAWN, sampling=sampling, seed=7, **more)
  counts = np.zeros((FEW,) * DRAWN)
  np.add.at(counts, tuple(np.array([r.tokens for r in found]).T), 1)
  expected = exact(sampling) * ROWS
  assert not counts[expected == 0].any()
  often = expected >= 5
  observed = [*counts[often], counts[~often].sum()]
  wanted = np.array([*expected[often], expected[~often].sum()])
  keep = wanted > 0
  p_value = stats.chisquare(np.array(observed)[keep], wanted[keep] * ROWS / wanted[keep].sum()).pvalue
  assert p_value > 1e-4
  if draft != 'alone':
    assert 0 < sum(r.kept for r in found) < sum(r.tried for r in found)


@pytest.mark.slow
def test_acceptance_is_one_minus_the_distance():
  """E[min(1, p / q)] = 1 - TV(p, q) (Leviathan et al., corollary 3.6), here of the first candidate after the prompt."""
  model, draft = build(TINY), stranger(TINY)
  found = generate(*model, [START], num_samples=ROWS, max_new_tokens=2, sampling=Sampling(1.0), seed=1, draft=draft)
  first = np.bincount([r.tokens[0] for r in found], minlength=FEW) / ROWS
  alpha = 0.0
  for token in range(FEW):
    text = [*START, token]
    p = np.exp(full_forward(TINY)(text, len(START))[-1])
    logits = draft.model.apply(draft.params, jnp.array([text]))[0][0, -1]
    alpha += first[token] * (1 - 0.5 * np.abs(p - np.asarray(jax.nn.softmax(logits))).sum())
  # Of each row only the first candidate is surely tried; the second step's would be beyond max_new_tokens.
  assert sum(r.kept > 0 for r in found) / ROWS == pytest.approx(alpha, abs=0.025)


# ---- by hand -------------------------------------------------------------------------------------------------------


def accepted(acceptance, sampling, tree, p, nodes, log_q=None):
  keys = jax.random.split(jax.random.key(0), len(nodes))
  logits = jnp.log(jnp.asarray(p, jnp.float32))
  result = acceptance(sampling, tree, logits, jnp.asarray(nodes, jnp.int32), log_q, keys, keys)
  return result.node.tolist(), result.token.tolist()


def test_greedy_acceptance_by_hand():
  tree = Tree((-1, 0, 0, 1, 2), (0, 0, 1, 0, 0))
  p = np.full((2, 5, 4), 0.1)
  best = [[2, 3, 1, 0, 3], [2, 3, 1, 0, 3]]
  for row, node in itertools.product(range(2), range(5)):
    p[row, node, best[row][node]] = 0.7
  # The first row goes by node 2 to node 4; in the second only node 1 fits the root, and its child does not fit it.
  nodes = [[0, 1, 2, 3, 1], [0, 2, 1, 0, 1]]
  assert accepted(Rejection(), GREEDY, tree, p, nodes) == ([4, 1], [3, 3])


def test_typical_acceptance_by_hand():
  tree = chain(2)
  sure, even = [0.97, 0.01, 0.01, 0.01], [0.25] * 4
  # exp(-H) is 0.844 and 0.25: thresholds min(0.09, 0.3 * 0.844) = 0.09 and 0.3 * 0.25 = 0.075.
  p = [[sure, even, sure], [sure, even, sure], [even, sure, sure]]
  nodes = [[0, 0, 3], [0, 1, 0], [0, 2, 1]]
  assert accepted(Typical(), Sampling(1.0), tree, p, nodes) == ([2, 0, 1], [0, 0, 0])
  # At 0.5, delta 1, an even distribution asks for 0.25, which 0.25 does not exceed.
  assert accepted(Typical(0.5, 1.0), Sampling(1.0), tree, p, nodes)[0] == [1, 0, 0]


def test_of_equally_long_paths_the_likeliest_is_taken():
  tree = Tree((-1, 0, 0), (0, 0, 1))
  p = [[[0.2, 0.3, 0.5], [0.6, 0.2, 0.2], [0.1, 0.8, 0.1]]]
  assert accepted(Typical(), Sampling(1.0), tree, p, [[0, 0, 1]]) == ([2], [1])


def test_lookup_by_hand():
  tokens = [[1, 2, 3, 4, 9, 2, 3, 0, 0, 0], [5, 6, 5, 6, 5, 0, 0, 0, 0, 0], [1, 2, 3, 0, 0, 0, 0, 0, 0, 0]]
  text = Text(jnp.array(tokens), jnp.array([6, 4, 2]), jnp.array([10, 10, 10]))
  proposed = PromptLookup(4, 2).propose(None, text, GREEDY, jax.random.split(jax.random.key(0), 3)).tokens.tolist()
  assert proposed[0] == [4, 9, 2, 3]
  assert proposed[1] == [6, 5, 6, 5]  # round in a circle
  assert len(proposed[2]) == 4  # nothing was alike: any guess


def test_bigrams_by_hand():
  draft = count_bigrams(np.array([0, 1, 0, 1, 0, 2, 0, 1]), 4, kept=2)
  assert draft.tokens[:3, 0].tolist() == [1, 0, 0]
  assert draft.tokens[0].tolist() == [1, 2]
  np.testing.assert_allclose(np.exp(draft.log_probabilities[:2]), [[0.75, 0.25], [1, 0]])
  np.testing.assert_allclose(np.exp(draft.log_probabilities).sum(axis=1), 1)


def test_a_penalty_is_on_what_was_seen():
  logits = jnp.array([[2.0, -2.0, 1.0], [2.0, -2.0, 1.0]])
  seen = Seen(jnp.array([[0, 1, 1], [2, 0, 0]]), jnp.array([[True, True, False], [True, False, False]]))
  np.testing.assert_allclose(RepetitionPenalty(2)(logits, seen), [[1, -4, 1], [2, -2, 0.5]])


@pytest.mark.parametrize(('wrong', 'message'), [
  ({'draft': lambda: heads(PARTS['learned'], BUSHY), 'sampling': Sampling(1.0)}, 'exact for temperature = 0 alone'),
  ({'acceptance': Typical(), 'sampling': GREEDY}, 'typical acceptance needs temperature > 0'),
  ({'acceptance': Typical(2.0), 'sampling': Sampling(1.0)}, 'takes epsilon in'),
  ({'draft': lambda: counted(TINY)}, 'vocabulary of 6 tokens, the model 31'),
  ({'draft': lambda: stranger(TINY)}, 'vocabulary of 6 tokens, the model 31'),
  ({'draft': lambda: heads(TINY, BUSHY)}, 'Medusa heads are of a model with 6 tokens'),
  ({'draft': lambda: own_layers(dataclasses.replace(PARTS['learned'], positions=Learned(8)))}, '8 learned positions'),
  ({'num_samples': 0}, '^num_samples = 0 must be at least 1'),
])  # fmt: skip
def test_bad_input_is_one_clear_line(wrong, message):
  how = {name: value() if name == 'draft' else value for name, value in wrong.items()}
  with pytest.raises(UserError, match=message) as caught:
    generate(*build(PARTS['learned']), [[1]], max_new_tokens=12, **{'sampling': GREEDY, **how})
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('number', [0, 3, 9])
def test_layers_that_are_none_are_refused(number):
  with pytest.raises(UserError, match=r'draft of . layers'):
    first_layers(*unstacked(*build(PARTS['banded'])), number)


def test_drafts_are_pytrees_of_arrays():
  assert {leaf.dtype for leaf in jax.tree.leaves(counted(TINY))} == {jnp.dtype('int32'), jnp.dtype('float32')}
  assert isinstance(counted(TINY), Bigram)
