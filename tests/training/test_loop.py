"""The step and the loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_run import batch_of, init, loss_fn

from gpt_jax.sharding import Placement, make_mesh
from gpt_jax.training import logs
from gpt_jax.training.loop import fit, init_state, make_step
from gpt_jax.types import Mean, UserError


def still(params, batch, rng):
  """loss_fn without dropout."""
  del rng
  logprobs = jax.nn.log_softmax(params['embed']['embedding'][batch['tokens'][:, :-1]] @ params['head']['kernel'])
  loss = -jnp.take_along_axis(logprobs, batch['tokens'][:, 1:, None], -1)[..., 0]
  weights = batch['weights'][:, 1:]
  return Mean((loss * weights).sum(), weights.sum()), {'tokens': Mean(weights.sum(), jnp.ones(()))}


def state_of(optimizer):
  return init_state(init(jax.random.key(0)), optimizer)


@pytest.mark.parametrize('microbatches', [2, 4, 8])
def test_microbatched_equals_whole(microbatches):
  """Rows weigh from nothing to all, so means of means would differ."""
  optimizer = optax.sgd(1.0)
  whole, metrics = make_step(still, optimizer, seed=0)(state_of(optimizer), batch_of(0))
  parts, sums = make_step(still, optimizer, seed=0, microbatches=microbatches)(state_of(optimizer), batch_of(0))
  for left, right in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
    np.testing.assert_allclose(left, right, atol=1e-6)
  for name in ('loss', 'grad_norm', 'tokens'):
    np.testing.assert_allclose(metrics[name].total, sums[name].total, rtol=1e-6)
  assert float(sums['loss'].weight) == batch_of(0)['weights'][:, 1:].sum()


def test_gradient_is_of_the_mean():
  """Against grad of total / weight, by hand."""
  optimizer = optax.sgd(1.0)
  params = init(jax.random.key(0))
  batch = jax.tree.map(jnp.asarray, batch_of(0))
  expected = jax.grad(lambda params: still(params, batch, None)[0].value)(params)
  norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(expected)))
  state, metrics = make_step(still, optimizer, seed=0)(init_state(params, optimizer), batch_of(0))
  np.testing.assert_allclose(metrics['grad_norm'].value, norm, rtol=1e-6)
  params = init(jax.random.key(0))
  np.testing.assert_allclose(
    state.params['head']['kernel'], params['head']['kernel'] - expected['head']['kernel'], atol=1e-6
  )


def test_batch_that_weighs_nothing_moves_nothing():
  optimizer = optax.sgd(1.0)
  batch = {**batch_of(0), 'weights': np.zeros_like(batch_of(0)['weights'])}
  state, metrics = make_step(still, optimizer, seed=0)(state_of(optimizer), batch)
  np.testing.assert_array_equal(state.params['head']['kernel'], init(jax.random.key(0))['head']['kernel'])
  assert float(metrics['loss'].value) == 0


def test_randomness_is_of_seed_step_and_part():
  optimizer = optax.sgd(0.0)

  def noise(params, batch, rng):
    one = jnp.ones(())
    return Mean((params['x'] * batch['one']).sum(), one), {'noise': Mean(jax.random.uniform(rng), one)}

  def draws(seed, microbatches):
    step = make_step(noise, optimizer, seed=seed, microbatches=microbatches)
    state, values = init_state({'x': jnp.ones(())}, optimizer), []
    for _ in range(2):
      state, metrics = step(state, {'one': np.ones(2, np.float32)})
      values.append(float(metrics['noise'].total))
    return values

  key = jax.random.fold_in(jax.random.key(5), 1)
  parts = [float(jax.random.uniform(jax.random.fold_in(key, part))) for part in (0, 1)]
  assert draws(5, 1)[1] == pytest.approx(float(jax.random.uniform(key)))
  assert draws(5, 2)[1] == pytest.approx(sum(parts))
  assert len({*draws(5, 1), *draws(6, 1)}) == 4


def test_runs_that_differ_in_their_seed_share_a_program():
  optimizer = optax.sgd(0.1)
  texts = set()
  for seed in (0, 2**33 + 1):
    step = make_step(loss_fn, optimizer, seed=seed)
    texts.add(step.func.lower(state_of(optimizer), batch_of(0), **step.keywords).as_text())
  assert len(texts) == 1


def test_compiles_once_and_donates():
  placement = Placement(make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2}))
  optimizer = optax.adamw(1e-2)
  birth = lambda: state_of(optimizer)
  shardings = placement.state(jax.eval_shape(birth))
  state = jax.jit(birth, out_shardings=shardings)()
  step = make_step(loss_fn, optimizer, seed=0, microbatches=2, shardings=shardings)
  for index in range(3):
    before = state
    state, _ = step(state, placement.batch(batch_of(index)))
    assert before.params['head']['kernel'].is_deleted()
  assert step.func._cache_size() == 1
  assert jax.tree.map(lambda leaf: leaf.sharding, state) == shardings


def test_cut_that_does_not_divide():
  optimizer = optax.sgd(1.0)
  with pytest.raises(UserError, match='a batch of 8 rows can not be cut into microbatches=3'):
    make_step(still, optimizer, seed=0, microbatches=3)(state_of(optimizer), batch_of(0))


def test_fit_counts_steps_of_rollouts():
  """A source that yields three batches is asked at every third step, and cut off at the last."""
  asked, called = [], []
  optimizer = optax.sgd(1e-2)

  def source(index, state):
    asked.append((index, int(state.step)))
    yield from (batch_of(index + number) for number in range(3))

  hook = lambda index, state, metrics: called.append((index, int(state.step), set(metrics)))
  state = fit(state_of(optimizer), source, make_step(still, optimizer, seed=0), num_steps=7, hooks=[hook])
  assert int(state.step) == 7
  assert asked == [(0, 0), (3, 3), (6, 6)]
  assert called == [(index, index, {'loss', 'tokens', 'grad_norm'}) for index in range(1, 8)]


def test_metrics_are_fetched_one_step_late(tmp_path, monkeypatch):
  events = []
  optimizer = optax.sgd(1e-2)
  step = make_step(still, optimizer, seed=0)

  def dispatch(state, batch):
    events.append(f'step {int(state.step) + 1}')
    return step(state, batch)

  log = logs.Log(
    tmp_path,
    start=0,
    num_steps=4,
    log_every=1,
    learning_rates=np.ones(4),
    tokens_per_step=lambda index: 1,
    describe_batch=str,
  )
  flush = log.flush

  def watched():
    if log._held:
      events.append(f'fetch {log._held[0]}')
    flush()

  monkeypatch.setattr(log, 'flush', watched)
  fit(state_of(optimizer), lambda index, state: [batch_of(index)], dispatch, num_steps=4, hooks=[log])
  assert events == ['step 1', 'step 2', 'fetch 1', 'step 3', 'fetch 2', 'step 4', 'fetch 3']
  assert [line['step'] for line in log.lines] == [1, 2, 3]
  log.flush()
  assert [line['step'] for line in log.lines] == [1, 2, 3, 4]
  log.close()
