"""What typical acceptance gains and costs over its epsilon, beside rejection sampling at the same temperature: a plot.

  python bench/acceptance.py --model=runs/quickstart --medusa=runs/medusa [--temperature 0.7] [--plot FILE.png]

For each epsilon (delta its root), and for rejection sampling from a chain of the same heads, texts are written after
pieces of held-out text, and read again by the model at once:

  tokens a step    what it is done for
  shift            total variation between the model's distribution and that of the token written, given the text
                   before it: typical acceptance draws nothing, so that it is 1 - p(token); rejection sampling is exact
  perplexity       of the text under the model, at the same temperature, beside that of greedy text
"""

import argparse
import dataclasses
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
from tabulate import tabulate

from experiments import language
from experiments.heads import load_medusa
from gpt_jax.data.rows import tokenize
from gpt_jax.data.sources import documents
from gpt_jax.decoding.acceptance import Rejection, Typical
from gpt_jax.decoding.drafts import Alone
from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.decoding.tree import chain

EPSILONS = (0.003, 0.01, 0.03, 0.09, 0.2, 0.4, 0.7, 1.0)


def log_probabilities(trained, temperature, prompts, results):
  """Of every token written, under the model at this temperature."""
  score = jax.jit(lambda params, tokens: jax.nn.log_softmax(trained.model.apply(params, tokens)[0] / temperature))
  found = []
  for prompt, result in zip(prompts, results, strict=True):
    text = np.concatenate([prompt, result.tokens])
    table = np.asarray(score(trained.params, jnp.asarray(text[None, :-1])))[0]
    found.append(table[np.arange(len(prompt) - 1, len(text) - 1), text[len(prompt) :]])
  return np.concatenate(found)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--model', default='runs/quickstart', help='what --model of experiments.generate takes')
  parser.add_argument('--medusa', default='runs/medusa', help='a folder that experiments.medusa left')
  parser.add_argument('--source', default='asset:shakespeare', help='of the pieces of text to go on from')
  parser.add_argument('--temperature', type=float, default=0.7)
  parser.add_argument('--prompts', type=int, default=64)
  parser.add_argument('--prompt_tokens', type=int, default=32)
  parser.add_argument('--new_tokens', type=int, default=96)
  parser.add_argument('--plot', default='bench/results/acceptance.png')
  options = parser.parse_args()
  trained = language.load(options.model, stacked=False)
  trees = load_medusa(options.medusa, trained.model.config)
  stream = tokenize(documents(options.source, 'validation', 0.1), trained.tokenizer).tokens
  places = np.linspace(0, len(stream) - options.prompt_tokens, options.prompts).astype(int)
  prompts = [np.asarray(stream[place : place + options.prompt_tokens]) for place in places]
  drawn = Sampling(options.temperature)
  chains = dataclasses.replace(trees, tree=chain(trees.heads.num_heads))
  ways = {
    'plain': (drawn, Alone(), Rejection()),
    'greedy': (Sampling(0), trees, Rejection()),
    'rejection sampling': (drawn, chains, Rejection()),
  } | {epsilon: (drawn, trees, Typical(epsilon, epsilon**0.5)) for epsilon in EPSILONS}
  lines = []
  for name, (sampling, draft, acceptance) in ways.items():
    results = generate(
      trained.model, trained.params, prompts, max_new_tokens=options.new_tokens, sampling=sampling, draft=draft,
      acceptance=acceptance, stride=options.new_tokens,
    )  # fmt: skip
    log_p = log_probabilities(trained, options.temperature, prompts, results)
    exact = acceptance == Rejection() and not sampling.greedy
    lines.append({
      'acceptance': name,
      'tokens_per_step': sum(len(r.tokens) - 1 for r in results) / sum(r.steps for r in results),
      'shift': 0.0 if exact else float(np.mean(1 - np.exp(log_p))),
      'perplexity': float(np.exp(-np.mean(log_p))),
    })  # fmt: skip
  draw(lines, options)
  print(tabulate(lines, headers='keys', floatfmt='.3f'))
  print(json.dumps({**vars(options), 'lines': lines}))


def draw(lines, options):
  """Three panels over epsilon; what has none is a level."""
  figure = Figure(figsize=(12, 3.6), layout='constrained')
  names = {
    'tokens_per_step': 'tokens a step', 'shift': 'total variation from the model',
    'perplexity': f'perplexity at temperature {options.temperature}',
  }  # fmt: skip
  for axes, (field, label) in zip(figure.subplots(1, 3), names.items(), strict=True):
    typical = [(line['acceptance'], line[field]) for line in lines if line['acceptance'] in EPSILONS]
    axes.semilogx(*zip(*typical, strict=True), 'o-', label='typical acceptance')
    levels = [line for line in lines if line['acceptance'] not in (*EPSILONS, 'plain')]
    for line, style in zip(levels, (':', '--'), strict=True):
      axes.axhline(line[field], ls=style, color='0.3', label=line['acceptance'])
    axes.set(xlabel='epsilon', ylabel=label)
  axes.legend()
  figure.savefig(options.plot, dpi=110)


if __name__ == '__main__':
  main()
