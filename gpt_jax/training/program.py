"""A run's training step and the state that it carries, known before any array exists."""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import jax
import optax

from gpt_jax.training.hardware import device_memory
from gpt_jax.training.loop import Step, TrainState, init_state, make_step
from gpt_jax.training.optimizers import make_optimizer, without_frozen
from gpt_jax.types import Batch, LossFn, Params, UserError, shapes_at


@runtime_checkable
class Placement(Protocol):
  """Where arrays live; sharding.Placement is one."""

  @property
  def mesh(self) -> jax.sharding.Mesh: ...
  def state(self, state: Any) -> Any: ...
  def batch(self, batch: Batch) -> Batch: ...


@dataclasses.dataclass(frozen=True)
class Program:
  """What a run trains with, and what a plan of it compiles."""

  optimizer: optax.GradientTransformation
  birth: Callable[[jax.Array], TrainState]
  """The state before the first step, of a key."""
  state: TrainState
  """Its shapes, each with the sharding that it has."""
  step: Step

  @property
  def shardings(self) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.sharding, self.state)


def program(
  config: Mapping[str, Any], init: Callable[[jax.Array], Params], loss_fn: LossFn, placement: Placement
) -> Program:
  """The step of a config: of its optimizer, num_steps, seed and microbatches."""
  optimizer = make_optimizer(config['optimizer'], config['num_steps'])
  birth = lambda key: init_state(init(key), optimizer)
  shapes = jax.eval_shape(birth, jax.random.key(config['seed']))
  shardings = placement.state(shapes)
  loss_fn = without_frozen(loss_fn, config['optimizer'])
  step = make_step(loss_fn, optimizer, seed=config['seed'], microbatches=config['microbatches'], shardings=shardings)
  return Program(optimizer, birth, shapes_at(shapes, shardings), step)


def device_bytes(tree: Any) -> float:
  """Bytes on one device, of shapes with their shardings."""
  leaves = jax.tree.leaves(tree)
  return float(sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves))


def check_memory(state: TrainState) -> str:
  """What a device holds all the time, of how much: a line to print, before anything is compiled.

  Gradients, of what is not frozen, and activations come on top: a plan counts them.

  Raises:
    UserError: it is more than there is.
  """
  needed, (there, source) = device_bytes(state), device_memory()
  said = f'{needed / 2**30:,.2f} GiB of parameters and moments, of {there / 2**30:,.1f} GiB ({source})'
  if needed > there:
    raise UserError(
      f'each device would have {said}: spread them by config.mesh.fsdp or config.mesh.tensor over more devices '
      '(experiments.plan says over how many), or take a smaller model'
    )
  return f'Each device has {said}'


def named(mesh: jax.sharding.Mesh) -> contextlib.AbstractContextManager[Any]:
  """The mesh where a model asks for it, to keep rows apart and to call kernels; one device needs none."""
  return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()
