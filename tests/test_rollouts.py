"""What a rollout says of texts is what the models say of them, and a rollout broken off is written anew."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.decoding.sampling import Sampling
from gpt_jax.models.heads import ActorCritic, LanguageModel, RewardModel, policy_params
from gpt_jax.models.parts import from_config
from gpt_jax.objectives.policy import policy_loss
from gpt_jax.rollouts import Gae, Grpo, Kl, Response, Rloo, Rollouts, Writing
from gpt_jax.training.loop import TrainState

VOCABULARY, END, STOP = 23, 0, 5
CONFIG = from_config(
  {
    'family': 'llama2_7b', 'num_layers': 2, 'model_dim': 16, 'num_heads': 2, 'num_kv_heads': 1, 'mlp': 'swiglu(24)',
    'vocab_size': VOCABULARY,
  }
)  # fmt: skip
PROMPTS = [[3, 4], [7, 8, 9], [1], [2, 2]]


def drawn(model: LanguageModel, seed: int):
  """Parameters far enough from their start to prefer some tokens."""
  method = 'features_and_values' if isinstance(model, ActorCritic) else '__call__'
  params = jax.jit(model.init, static_argnames='method')(jax.random.key(seed), jnp.zeros((1, 1), int), method=method)
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed + 100), len(leaves))
  return jax.tree.unflatten(
    tree, [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
  )


def score(responses):
  return np.array([sum(response.tokens) / 50 for response in responses])


def rollouts(folder, model=None, params=None, *, reference=None, estimator=None, **how) -> Rollouts:
  model = LanguageModel(CONFIG) if model is None else model
  reference = policy_params(params) if reference is None else reference
  writing = Writing(8, Sampling(0.9), stop_ids=(END,), **how.pop('writing', {}))
  return Rollouts(
    model, reference, how.pop('prompts', lambda number: PROMPTS), len(PROMPTS), 3, writing, score, estimator or Gae(),
    how.pop('kl', Kl(0.1)), 2, 2, 0, folder / 'rollouts.jsonl', str, **how,
  )  # fmt: skip


SHARED, OWN = ActorCritic(CONFIG), ActorCritic(CONFIG, critic_config=CONFIG)


@pytest.mark.parametrize('model', [SHARED, OWN], ids=['shared', 'own'])
def test_what_was_said_is_what_a_full_reading_says(model, tmp_path):
  params, reference = drawn(model, 0), drawn(LanguageModel(CONFIG), 1)
  source = rollouts(tmp_path, model, params, reference=reference)
  batch = source.roll(0, params)
  for row, prompt in enumerate(PROMPTS):
    count = int(batch['weights'][row].sum())
    text = batch['tokens'][row, : len(prompt) + count]
    assert text[: len(prompt)].tolist() == prompt and END not in text[len(prompt) : -1]
    assert np.flatnonzero(batch['weights'][row]).tolist() == list(range(len(prompt), len(prompt) + count))
    places = np.arange(len(prompt) - 1, len(prompt) - 1 + count)
    for name, of in (('old_logprobs', policy_params(params)), ('reference_logprobs', reference)):
      logits, _ = LanguageModel(CONFIG).apply(of, jnp.asarray(text[None]))
      every = jax.nn.log_softmax(logits[0] / 0.9)
      expected = [every[place, text[place + 1]] for place in places]
      np.testing.assert_allclose(batch[name][row, places], expected, atol=1e-4)
    if model is OWN:
      values = RewardModel(CONFIG).apply(
        {'params': params['params']['critic']}, jnp.asarray(text[None]), method='values'
      )
    else:
      hidden, _, _ = LanguageModel(CONFIG).apply(policy_params(params), jnp.asarray(text[None]), method='features')
      values = hidden @ params['params']['reward_kernel'] + params['params']['reward_bias']
    np.testing.assert_allclose(batch['values'][row, places], values[0, places], atol=1e-4)
  (line,) = (json.loads(line) for line in (tmp_path / 'rollouts.jsonl').read_text().splitlines())
  weights = batch['weights'][:, 1:]
  kl = ((batch['old_logprobs'] - batch['reference_logprobs']) * weights).sum(axis=1).mean()
  assert line['kl'] == pytest.approx(kl, abs=1e-6) and line['reward'] == pytest.approx(batch['scores'].mean())


def test_sampled_log_probabilities_are_those_that_are_learned_by(tmp_path):
  """Cached, a token at a time, at temperature 1: what `generate` says of its draws; full: what the rollout says."""
  from gpt_jax.decoding.generate import generate

  model, params = LanguageModel(CONFIG), drawn(LanguageModel(CONFIG), 3)
  source = rollouts(tmp_path, model, params, estimator=Grpo(2))
  source.writing = Writing(8, Sampling(1.0), stop_ids=(END,))
  source.__post_init__()
  batch = source.roll(0, params)
  found = generate(model, params, PROMPTS, max_new_tokens=8, sampling=Sampling(1.0), stop_ids=(END,), seed=0, stride=8)
  for row, one in enumerate(found):
    places = np.flatnonzero(batch['weights'][row, 1:])
    np.testing.assert_array_equal(batch['tokens'][row, 1 + places], one.tokens)
    np.testing.assert_allclose(batch['old_logprobs'][row, places], one.log_probabilities, atol=1e-4)


def test_the_first_update_has_ratio_one_and_no_kl(tmp_path):
  params = drawn(OWN, 0)
  source = rollouts(tmp_path, OWN, params)
  state = TrainState(jnp.zeros((), int), params, ())
  batch = next(source(0, state))
  loss = jax.jit(policy_loss(OWN, temperature=0.9))
  _, metrics = loss(params, jax.tree.map(jnp.asarray, batch), jax.random.key(0))
  assert abs(float(metrics['ratio'].value) - 1) < 1e-6 and float(metrics['approximate_kl'].value) < 1e-10
  assert abs(float(metrics['kl'].value)) < 1e-5
  _, metrics = loss(drawn(OWN, 7), jax.tree.map(jnp.asarray, batch), jax.random.key(0))
  assert abs(float(metrics['ratio'].value) - 1) > 1e-3


def test_every_response_is_in_one_minibatch_of_each_epoch_and_rollouts_differ(tmp_path):
  params = drawn(SHARED, 0)
  asked = []
  source = rollouts(tmp_path, SHARED, params, prompts=lambda number: asked.append(number) or PROMPTS)
  state = TrainState(jnp.zeros((), int), params, ())
  first, second = list(source(0, state)), list(source(4, state))
  assert asked == [0, 1] and len(first) == 4
  whole = lambda batches: sorted(np.concatenate([batch['scores'] for batch in batches]).tolist())
  assert whole(first[:2]) == whole(first[2:]) != whole(second[:2])
  assert not np.array_equal(first[0]['tokens'], first[2]['tokens']) or not np.array_equal(
    first[1]['tokens'], first[3]['tokens']
  )
  again = list(source(6, state))  # broken off after two of its four updates
  assert len(again) == 2 and [json.loads(line)['rollout'] for line in source.history.read_text().splitlines()] == [0, 1]
  assert set(source.seconds) == {'sampling', 'scoring', 'reading', 'updating'}


def test_divergence_of_any_number_of_responses(tmp_path):
  """Read as many at a time as in an update, filled up with padding that counts nothing."""
  params, reference = drawn(SHARED, 0), drawn(LanguageModel(CONFIG), 1)
  source = rollouts(tmp_path, SHARED, params, reference=reference)
  responses = [Response([3, 4], [5, 6, 7], True), Response([8], [9], False), Response([1, 2, 3], [4, 5], False)]
  kl, nll = [], []
  for one in responses:
    text = jnp.asarray([[*one.prompt, *one.tokens]])
    said = []
    for of in (policy_params(params), reference):
      every = jax.nn.log_softmax(LanguageModel(CONFIG).apply(of, text)[0][0] / 0.9)
      said.append([float(every[place - 1, text[0, place]]) for place in range(len(one.prompt), text.shape[1])])
    kl.append(sum(said[0]) - sum(said[1]))
    nll += [-logprob for logprob in said[1]]
  assert source.divergence(params, responses) == pytest.approx((np.mean(kl), np.mean(nll)), abs=1e-4)


def test_the_kl_coefficient_goes_on_from_the_history(tmp_path):
  params, reference = drawn(SHARED, 0), drawn(LanguageModel(CONFIG), 1)
  adaptive = Kl(0.1, target=0.01, horizon=20)
  source = rollouts(tmp_path, SHARED, params, reference=reference, kl=adaptive)
  for number in range(3):
    source.roll(number, params)
  anew = rollouts(tmp_path, SHARED, params, reference=reference, kl=adaptive)
  anew.roll(2, params)
  lines = [json.loads(line) for line in source.history.read_text().splitlines()]
  assert [line['rollout'] for line in lines] == [0, 1, 2]
  assert [line['kl_coefficient'] for line in lines] == pytest.approx([0.1, 0.104, 0.104 * 1.04])


def test_groups_and_the_reward_of_what_does_not_end(tmp_path):
  params = drawn(LanguageModel(CONFIG), 0)
  two = {'num_samples': 2}
  grpo = rollouts(tmp_path, params=params, estimator=Grpo(2, scaled=False), writing=two).roll(0, params)
  assert len(grpo['tokens']) == 8 and 'returns' not in grpo
  assert [row[:2].tolist() for row in grpo['tokens'][[0, 1, 6, 7]]] == [[3, 4], [3, 4], [2, 2], [2, 2]]
  weights = grpo['weights'][:, 1:]
  halves = (grpo['scores'][::2] - grpo['scores'][1::2]) / 2
  np.testing.assert_allclose(grpo['advantages'][::2], halves[:, None] * weights[::2], atol=1e-6)
  rloo = rollouts(tmp_path, params=params, estimator=Rloo(2), writing=two).roll(0, params)
  np.testing.assert_allclose(rloo['advantages'][::2], 2 * halves[:, None] * weights[::2], atol=1e-5)
  white = rollouts(tmp_path, params=params, estimator=Rloo(2), writing=two, whiten_scores=True).roll(0, params)
  np.testing.assert_array_equal(white['scores'], rloo['scores'])
  apart = 2 * halves / rloo['scores'].std()
  np.testing.assert_allclose(white['advantages'][::2], apart[:, None] * weights[::2], atol=1e-5)
  strict = rollouts(tmp_path, params=params, estimator=Rloo(2), writing=two, missing_end_reward=-1.0).roll(0, params)
  ended = np.array([END in row[1:] for row in strict['tokens'] * (strict['weights'] > 0) + (strict['weights'] == 0)])
  assert ended.any() and not ended.all()
  np.testing.assert_allclose(strict['scores'][~ended], -1)
  np.testing.assert_allclose(strict['scores'][ended], rloo['scores'][ended])


def test_truncation_by_hand():
  writing = Writing(9, truncate_ids=(STOP,), truncate_after=3)
  cut = lambda tokens, ended=False: writing._truncated([1], tokens, ended)
  assert cut([STOP, 1, 2, STOP, 3]) == Response([1], [STOP, 1, 2, STOP], True)
  assert cut([1, 2, STOP, 3]) == Response([1], [1, 2, STOP], True)
  assert cut([1, STOP, 2, 3]) == Response([1], [1, STOP, 2, 3], False)
  assert Writing(9)._truncated([1], [STOP, 2], True) == Response([1], [STOP, 2], True)
