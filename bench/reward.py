"""How long a training step of a reward model takes: all comparisons of a ranking together, or each pair by itself.

  python bench/reward.py [--quick]

Loss and gradients for a batch of rankings of K responses, in one run: grouped, each response is read once (Ouyang et
al. 2022, section 3.5); as K (K - 1) / 2 pairs, K - 1 times. Both are the same function: gradients are compared. A step
is timed after another of its own kind: after one of many times its memory it would be the machine's paging that counts.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from configs.pretrain import snippets
from gpt_jax.models.heads import RewardModel
from gpt_jax.models.parts import from_config
from gpt_jax.objectives.preference import ranking_loss
from gpt_jax.types import Layout

LENGTH, VOCABULARY, RANKINGS = 64, 4096, 4


def batch_of(tokens, scores):
  order = np.broadcast_to(np.arange(tokens.shape[-1], dtype=np.int32), tokens.shape)
  zeros = np.zeros_like(order)
  layout = Layout(order, order, zeros, zeros + 1, zeros.astype(bool))
  batch = {'tokens': tokens, 'weights': np.ones(scores.shape, np.float32), 'scores': scores, 'layout': layout}
  return jax.device_put(batch)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--quick', action='store_true', help='two rounds')
  rounds = 2 if parser.parse_args().quick else 5
  config = {**snippets.get_config().model.to_dict(), 'vocab_size': VOCABULARY}
  model = RewardModel(from_config(config))
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), int))
  step = jax.jit(
    jax.value_and_grad(lambda params, batch: ranking_loss(model)(params, batch, jax.random.key(0))[0].value)
  )
  rng, figures = np.random.default_rng(0), {}
  for size in (4, 9):
    tokens = rng.integers(0, VOCABULARY, (RANKINGS, size, LENGTH), np.int32)
    scores = np.array([rng.permutation(size) for _ in range(RANKINGS)], np.float32)
    pairs = np.array([(i, j) for i in range(size) for j in range(i)])
    apart = [x[:, pairs].reshape(-1, *x[0, pairs].shape[1:]) for x in (tokens, scores)]
    forms = {'grouped': batch_of(tokens, scores), 'pairs': batch_of(*apart)}
    seconds, results = {name: [] for name in forms}, {}
    for _ in range(rounds):
      for name, batch in forms.items():
        jax.block_until_ready(step(params, batch))  # the machine's memory and caches as in training: this step alone
        start = time.perf_counter()
        results[name] = jax.block_until_ready(step(params, batch))
        seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(results['pairs'][1]))
    difference = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), *(results[name][1] for name in forms))
    figures[f'k{size}_pairs_over_grouped'] = round(medians['pairs'] / medians['grouped'], 2)
    figures[f'k{size}_gradient_difference'] = max(jax.tree.leaves(difference)) / largest
    shown = ', '.join(f'{name} {1e3 * taken:.0f} ms' for name, taken in medians.items())
    print(f'K = {size}, {len(pairs)} pairs a ranking: {shown}')
  print(json.dumps({**figures, 'device': jax.devices()[0].device_kind}))


if __name__ == '__main__':
  main()
