"""What reading both ways costs in training: steps of a GLM against those of a causal model of the same shape.

  python bench/infilling.py [--quick]

Rows of the same length; both take turns; medians. A run makes batches ahead, in a thread; here their time is added to
that of the step, so that the ratio with data is the worst case.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.data import mixture
from gpt_jax.data.blanks import Blanks
from gpt_jax.data.infilling import Blanked, text_context
from gpt_jax.data.marks import Marks
from gpt_jax.data.rows import Rows, Stream
from gpt_jax.models.attention import Dense
from gpt_jax.models.families import FAMILIES
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.layers import Mlp
from gpt_jax.models.positions import Learned, Learned2D
from gpt_jax.objectives.likelihood import next_token_loss
from gpt_jax.training.loop import init_state, make_step
from gpt_jax.training.optimizers import FIELDS, make_optimizer

VOCABULARY, WIDTH, LAYERS, ROWS, CONTEXT = 4096, 256, 4, 8, 512
MARKS = Marks(*range(VOCABULARY - 5, VOCABULARY))


def text():
  tokens = np.random.default_rng(0).integers(0, VOCABULARY - 5, 1_000_000).astype(np.uint16)
  return Stream('random', tokens, np.array([0]), len(tokens))


def model_of(attention, positions):
  shape = {
    'vocab_size': VOCABULARY, 'num_layers': LAYERS, 'model_dim': WIDTH, 'num_heads': 8, 'num_kv_heads': 8,
    'mlp': Mlp(4 * WIDTH), 'stacked': False,
  }  # fmt: skip
  family = FAMILIES['glm_large']
  return LanguageModel(dataclasses.replace(family, **shape, attention=attention, positions=positions))


def contestants():
  """By name, a model and its batches by step."""
  glm = model_of(FAMILIES['glm_large'].attention, Learned2D(CONTEXT + 1))
  causal = model_of((Dense(),), Learned(CONTEXT + 1))
  ends = np.random.default_rng(1).random(VOCABULARY) < 0.05
  blanks = Blanked(Rows(text(), text_context(CONTEXT)), Blanks(), MARKS, ends, CONTEXT, 0)
  return {
    'causal': (causal, mixture.batches([Rows(text(), CONTEXT)], [1.0], ROWS, 0)),
    'glm': (glm, mixture.batches([blanks], [1.0], ROWS, 0)),
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--quick', action='store_true', help='fewer rounds')
  rounds = 5 if parser.parse_args().quick else 15
  optimizer = make_optimizer({**FIELDS, 'learning_rate': 1e-3}, 1000)
  running, steps, whole = {}, {}, {}
  for name, (model, source) in contestants().items():
    state = init_state(model.init(jax.random.key(0), jnp.zeros((1, 1), int)), optimizer)
    running[name] = [state, make_step(next_token_loss(model), optimizer, seed=0), source]
  for number in range(rounds + 1):
    for name, parts in running.items():
      state, step, source = parts
      start = time.perf_counter()
      batch = source(number)
      between = time.perf_counter()
      parts[0], _ = step(state, batch)
      jax.block_until_ready(parts[0])
      if number:  # the first compiles
        steps.setdefault(name, []).append(time.perf_counter() - between)
        whole.setdefault(name, []).append(time.perf_counter() - start)
  step, both = ({name: statistics.median(taken) for name, taken in times.items()} for times in (steps, whole))
  for name in running:
    data = 1e3 * (both[name] - step[name])
    speed = ROWS * CONTEXT / both[name]
    print(f'{name:8} {1e3 * step[name]:8.1f} ms a step, {data:6.1f} ms its batch, {speed:8.0f} tokens a second')
  figures = {
    'glm_vs_causal_step': step['causal'] / step['glm'],
    'glm_vs_causal_with_data': both['causal'] / both['glm'],
    'glm_data_share_of_step': both['glm'] / step['glm'] - 1,
  }
  print(json.dumps({**{name: round(x, 3) for name, x in figures.items()}, 'device': jax.devices()[0].device_kind}))


if __name__ == '__main__':
  main()
