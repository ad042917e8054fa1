"""One step and one loop, for every objective."""

from collections.abc import Callable, Iterable, Sequence
import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gpt_jax.types import Batch, LossFn, Mean, Metrics, Params, UserError


@struct.dataclass
class TrainState:
  """All that a run carries from step to step; arrays only, so a checkpoint is exactly this.

  Trees of their shapes or shardings are TrainStates too, so fields are typed as loosely.
  """

  step: Any
  params: Params
  opt_state: Any


Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Source = Callable[[int, TrainState], Iterable[Batch]]
Hook = Callable[[int, TrainState, Metrics], None]


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
  """The state before the first step."""
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


@jax.jit
def all_finite(tree: Any) -> jax.Array:
  """Whether no number of a tree of arrays is NaN or infinite."""
  floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
  return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]))


def make_step(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  *,
  seed: int,
  microbatches: int = 1,
  shardings: TrainState | None = None,
) -> Step:
  """A jitted step down the loss, which donates the state.

  The gradient is that of the loss's *total* summed over the micro-batches, divided once by the whole weight: a step
  doesn't depend on how the batch was cut, whatever each part weighs. `shardings` pins where the new state lives.
  Metrics are loss_fn's, with `loss` and `grad_norm` (before any clipping).
  """

  def total(params, batch, rng):
    loss, metrics = loss_fn(params, batch, rng)
    return loss.total, {name: (mean.total, mean.weight) for name, mean in {**metrics, 'loss': loss}.items()}

  gradient = jax.grad(total, has_aux=True)

  def summed(params, batch, rng):
    if microbatches == 1:
      return gradient(params, batch, rng)
    parts = jax.tree.map(lambda array: _cut(array, microbatches), batch)

    def add(sums, numbered):
      number, part = numbered
      return jax.tree.map(jnp.add, sums, gradient(params, part, jax.random.fold_in(rng, number))), None

    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda array: array[0], parts), rng)
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return jax.lax.scan(add, zeros, (jnp.arange(microbatches), parts))[0]

  def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
    rng = jax.random.fold_in(jax.random.wrap_key_data(key), state.step)
    gradients, sums = summed(state.params, batch, rng)
    metrics = {name: Mean(*pair) for name, pair in sums.items()}
    gradients = jax.tree.map(lambda total: Mean(total, metrics['loss'].weight).value, gradients)
    metrics['grad_norm'] = Mean(optax.global_norm(gradients), jnp.ones(()))
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), metrics

  compiled = jax.jit(step, donate_argnums=0, out_shardings=None if shardings is None else (shardings, None))
  # The seed is an argument, not a constant of the program: runs that differ in it share one compilation.
  return functools.partial(compiled, key=np.asarray(jax.random.key_data(jax.random.key(seed))))


def _cut(array: jax.Array, parts: int) -> jax.Array:
  """Part i has rows i, i + parts, ...: rows spread over devices stay where they are."""
  if array.shape[0] % parts:
    raise UserError(f'a batch of {array.shape[0]} rows can not be cut into microbatches={parts}; pick a divisor')
  return array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)


def fit(state: TrainState, source: Source, step: Step, *, num_steps: int, hooks: Sequence[Hook] = ()) -> TrainState:
  """Trains until `num_steps` steps are done. The only loop.

  `source(index, state)` gives the batches that follow `index` finished steps: one when the data is fixed; when the
  policy makes its own data, the minibatches of one rollout. The step donates the state, so a source uses it before
  its first batch. `hook(index, state, metrics)` is called while step number `index` (from 1) runs: metrics are device
  values, and fetching them waits for the step.
  """
  index = int(state.step)
  while index < num_steps:
    before = index
    for batch in source(index, state):
      state, metrics = step(state, batch)
      index += 1
      for hook in hooks:
        hook(index, state, metrics)
      if index == num_steps:
        break
    if index == before:
      raise UserError(f'the data has no batch for step {index + 1}: is the data set empty?')
  return state
