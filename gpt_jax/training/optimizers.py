"""Optimisers from plain data: clip, direction by name, decay, learning rate, average."""

from collections.abc import Callable, Mapping, Sequence
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import keystr
from jaxtyping import Float
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers

from gpt_jax.names import choose
from gpt_jax.training.fields import complete
from gpt_jax.training.schedules import make_schedule
from gpt_jax.types import LossFn, Params, UserError

FIELDS: dict[str, Any] = {
  'name': 'adamw',
  'learning_rate': 3e-4,  # the peak
  'warmup_steps': 0,
  'schedule': 'cosine',
  'decay_steps': 0,  # 0: num_steps
  'end_fraction': 0.1,
  'cooldown_fraction': 0.2,  # wsd
  'b1': 0.9,
  'b2': 0.95,
  'eps': 1e-8,
  'eps_hat': False,  # True: it is added before the second moment's bias is corrected, as in TensorFlow 1
  'momentum': 0.95,  # muon, sgd
  'weight_decay': 0.1,  # times the learning rate, as in PyTorch
  'decay_mask': r'(kernel|embedding|table)$',  # a regex over parameter paths
  'clip_norm': 1.0,  # of the whole gradient; 0: none
  'ema': 0.0,  # decay of the average of the parameters; 0: none
  'rates': (),  # pairs of a regex over parameter paths and what it multiplies the learning rate by; 0: frozen
}

# The matrices that Muon makes orthogonal, by the end of their path, with the axes they are read from and written to.
# Axes count from the end: a leading axis of layers is a batch of matrices. Anything else goes by Adam.
MATRICES = (
  (r'attention/(query|key|value)/kernel$', MuonDimensionNumbers(-3, (-2, -1))),
  (r'attention/out/kernel$', MuonDimensionNumbers((-3, -2), -1)),
  (r'mlp/(gate|up|down)/kernel$', MuonDimensionNumbers(-2, -1)),
  (r'residual_kernel$', MuonDimensionNumbers(-2, -1)),
)


def _adam(config: Mapping[str, Any]) -> optax.GradientTransformation:
  """m / (sqrt(v) + eps), both corrected for their bias; or epsilon-hat (Kingma and Ba 2015, end of section 2).

  sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps): the first steps are smaller, by up to sqrt(1 - b2) where eps rules.
  """
  b1, b2, eps = config['b1'], config['b2'], config['eps']
  if not config['eps_hat']:
    return optax.scale_by_adam(b1, b2, eps, mu_dtype=jnp.float32)
  moments = optax.scale_by_adam(b1, b2, eps, mu_dtype=jnp.float32)

  def update(gradients, state, params=None):
    _, state = moments.update(gradients, state, params)
    factor = jnp.sqrt(1 - b2**state.count) / (1 - b1**state.count)
    return jax.tree.map(lambda m, v: factor * m / (jnp.sqrt(v) + eps), state.mu, state.nu), state

  return optax.GradientTransformation(moments.init, update)


def _adafactor(config: Mapping[str, Any]) -> optax.GradientTransformation:
  """Factored second moments, clipped and scaled to the parameter's size (arXiv 1804.04235): learning_rate is relative.

  Clip and scale are by parameter, so stacked layers share theirs.
  """
  del config
  return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms())


def _muon(config: Mapping[str, Any]) -> optax.GradientTransformation:
  """Momentum made orthogonal, scaled to AdamW's usual size, so one learning rate serves both (arXiv 2502.16982)."""

  def axes(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: matrix_axes(_name(path)), params)

  def labels(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: 'muon' if matrix_axes(_name(path)) else 'adam', params)

  def resize(updates, params=None):
    del params
    return jax.tree_util.tree_map_with_path(
      lambda path, update: 0.2 * math.sqrt(max(_fans(update, matrix_axes(_name(path))))) * update, updates
    )

  muon = optax.contrib.scale_by_muon(beta=config['momentum'], weight_dimension_numbers=axes)
  return optax.partition({'muon': optax.chain(muon, optax.stateless(resize)), 'adam': _adam(config)}, labels)


# Each gives an update before decay and learning rate.
OPTIMIZERS: dict[str, Callable[[Mapping[str, Any]], optax.GradientTransformation]] = {
  'adamw': _adam,
  'adafactor': _adafactor,
  'lion': lambda config: optax.scale_by_lion(config['b1'], config['b2'], mu_dtype=jnp.float32),
  'muon': _muon,
  'sgd': lambda config: optax.trace(config['momentum']),
}


def make_optimizer(config: Mapping[str, Any], num_steps: int) -> optax.GradientTransformation:
  """The optimiser that `config` describes; missing fields are those of FIELDS, an unknown one is a UserError.

  Of `rates`, the first pattern found in a path decides. What is frozen stays as it is to the last bit, has no moments,
  and does not count in the norm that is clipped.
  """
  config = complete('optimizer', config, FIELDS)
  rate = _rates(config['rates'])
  parts = [optax.clip_by_global_norm(config['clip_norm'])] if config['clip_norm'] else []
  parts.append(choose('optimizer.name', config['name'], OPTIMIZERS)(config))
  if config['weight_decay']:
    parts.append(optax.add_decayed_weights(config['weight_decay'], decay_mask(config['decay_mask'])))
  parts.append(optax.scale_by_learning_rate(make_schedule(config, num_steps)))
  if config['rates']:
    scaled = lambda updates, params=None: _by_path(lambda path, update: rate(path) * update, updates)
    parts.append(optax.stateless(scaled))
  if not all(float(factor) for _, factor in config['rates']):
    labels = lambda params: _by_path(lambda path, _: 'trained' if rate(path) else 'frozen', params)
    parts = [optax.partition({'trained': optax.chain(*parts), 'frozen': optax.set_to_zero()}, labels)]
  if config['ema']:
    parts.append(average(config['ema']))
  return optax.chain(*parts)


def without_frozen(loss_fn: LossFn, config: Mapping[str, Any]) -> LossFn:
  """The loss as a function of what is not frozen: no gradient of the rest is computed, logged or added up."""
  rate = _rates(complete('optimizer', config, FIELDS)['rates'])
  still = lambda path, leaf: leaf if rate(path) else jax.lax.stop_gradient(leaf)
  return lambda params, batch, rng: loss_fn(_by_path(still, params), batch, rng)


def _rates(pairs: Sequence[Any]) -> Callable[[str], float]:
  """What the learning rate of a parameter is multiplied by."""
  try:
    compiled = [(re.compile(pattern), float(factor)) for pattern, factor in pairs]
  except (re.error, TypeError, ValueError) as error:
    raise UserError(f'optimizer.rates={pairs} is no list of pairs (regular expression, factor): {error}') from None
  return lambda path: next((factor for pattern, factor in compiled if pattern.search(path)), 1.0)


def _by_path(function: Callable[[str, Any], Any], tree: Any) -> Any:
  return jax.tree_util.tree_map_with_path(lambda path, leaf: function(_name(path), leaf), tree)


def learning_rates(config: Mapping[str, Any], num_steps: int) -> Float[np.ndarray, ' steps']:
  """What make_optimizer uses at each step, on the host: reading one costs the device nothing."""
  schedule = make_schedule(complete('optimizer', config, FIELDS), num_steps)
  return np.asarray(jax.vmap(schedule)(jnp.arange(num_steps)))


def decay_mask(pattern: str) -> Callable[[Params], Any]:
  """The parameters whose path `pattern` finds."""
  try:
    compiled = re.compile(pattern)
  except re.error as error:
    raise UserError(f'optimizer.decay_mask={pattern} is no regular expression: {error}') from None
  return lambda params: jax.tree_util.tree_map_with_path(lambda path, _: bool(compiled.search(_name(path))), params)


def matrix_axes(path: str) -> MuonDimensionNumbers | None:
  """How Muon reads the parameter as matrices; None when it isn't one."""
  return next((axes for pattern, axes in MATRICES if re.search(pattern, path)), None)


class AverageState(NamedTuple):
  """The average of the parameters after each update."""

  number: jax.Array
  average: Params


def average(decay: float) -> optax.GradientTransformation:
  """Exponential moving average of the parameters, kept in the state; goes last in a chain and changes no update.

  The first updates count more, by min(decay, (1 + n) / (10 + n)), so the average soon forgets where it started.
  """

  def init(params):
    return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.array, params))

  def update(updates, state, params=None):
    number = state.number + 1
    keep = jnp.minimum(decay, (1 + number) / (10 + number))
    new = optax.apply_updates(params, updates)
    mixed = jax.tree.map(lambda old, now: keep * old + (1 - keep) * now, state.average, new)
    return updates, AverageState(number, mixed)

  return optax.GradientTransformation(init, update)


def averaged(opt_state: Any) -> Params | None:
  """The average that an optimiser with `ema` keeps; None without."""
  states = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, AverageState))
  return next((state.average for state in states if isinstance(state, AverageState)), None)


def _fans(array: jax.Array, axes: MuonDimensionNumbers | None) -> tuple[int, int]:
  assert axes is not None
  sizes = [axis if isinstance(axis, tuple) else (axis,) for axis in axes]
  return math.prod(array.shape[axis] for axis in sizes[0]), math.prod(array.shape[axis] for axis in sizes[1])


def _name(path: Any) -> str:
  return keystr(path, simple=True, separator='/')
