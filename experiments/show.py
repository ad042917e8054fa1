"""Prints a batch as a run would learn from it: what is to be predicted in green, what is only read as it is.

python -m experiments.show --experiment=instruct --config=configs/instruct/snippets.py [--step=0] [--rows=4]

Where there are no colours (NO_COLOR is set, or it is no terminal), what is to be predicted stands in [[ ]]. A line of
its own begins each text of a packed row, and each response of a ranking, with its score.
"""

from collections.abc import Callable, Iterator, Mapping
import itertools
import os
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags
import numpy as np

from experiments import blanks, command, demonstrations, language, preferences, runs
from gpt_jax.data import mixture, tokenizers
from gpt_jax.data.rows import Dataset
from gpt_jax.data.tokenizers import Tokenizer
from gpt_jax.types import Batch

CONFIG = config_flags.DEFINE_config_file('config', None, 'a file of configs')
EXPERIMENT = flags.DEFINE_enum(
  'experiment', 'instruct', ['pretrain', 'instruct', 'reward', 'dpo'], 'whose config it is'
)
STEP = flags.DEFINE_integer('step', 0, 'which batch, by the number of the step that learns from it', lower_bound=0)
ROWS = flags.DEFINE_integer('rows', 4, 'rows of it at most', lower_bound=1)

Source = tuple[Tokenizer, list[Dataset], list[float]]


def _pretrain(config: Mapping[str, Any]) -> Source:
  runs.check(config)
  model, tokenizer, _ = runs.beginning(config)
  return tokenizer, *blanks.training(config, tokenizer, blanks.of_config(config, model))


def _instruct(config: Mapping[str, Any]) -> Source:
  demonstrations.checked(config)
  found = language.weights(config['init_from'])
  return found.tokenizer, *demonstrations.training_rows(config, found)


def _ranked(config: Mapping[str, Any]) -> Source:
  preferences.check(config)
  found = language.weights(config['init_from'])
  return found.tokenizer, [preferences.ranked(config, found, 'train')], [1.0]


SOURCES: Mapping[str, Callable[[Mapping[str, Any]], Source]] = {
  'pretrain': _pretrain,
  'instruct': _instruct,
  'reward': _ranked,
  'dpo': _ranked,
}


def texts(batch: Batch, row: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
  """Of a row each text: what stands before it, its tokens, and which of them are to be predicted."""
  if 'said' in batch:
    for place in np.flatnonzero(batch['weights'][row]):
      length = int(batch['layout'].segment[row, place].sum())
      tokens, said = (batch[name][row, place, :length] for name in ('tokens', 'said'))
      yield f'{batch["scores"][row, place]:g}: ', tokens, said > 0
    return
  weights = batch['weights'][row]
  tokens = np.where(weights > 0, batch.get('labels', batch['tokens'])[row], batch['tokens'][row])
  segments = batch['layout'].segment[row] if 'layout' in batch else np.ones_like(tokens)
  for segment in range(1, int(segments.max()) + 1):
    within = segments == segment
    yield '', tokens[within], weights[within] > 0


def painted(tokenizer: Tokenizer, tokens: np.ndarray, predicted: np.ndarray, marks: tuple[str, str]) -> str:
  """The text of tokens, with a mark before and behind what is to be predicted."""
  parts = []
  for is_said, places in itertools.groupby(range(len(tokens)), key=lambda place: bool(predicted[place])):
    text = tokenizers.decode(tokenizer, tokens[list(places)])
    parts.append(f'{marks[0]}{text}{marks[1]}' if is_said else text)
  return ''.join(parts)


def main(_: Any) -> None:
  config = command.required(CONFIG).to_dict()
  tokenizer, rows, weights = SOURCES[EXPERIMENT.value](config)
  batch = mixture.batches(rows, weights, config['batch_size'], config['seed'])(STEP.value)
  colours = sys.stdout.isatty() and 'NO_COLOR' not in os.environ
  marks = ('\033[32m', '\033[0m') if colours else ('[[', ']]')
  predicted = batch['said'] if 'said' in batch else batch['weights']
  print(f'batch {STEP.value}: tokens {batch["tokens"].shape}, {int(predicted.sum()):,} of them to be predicted')
  for row in range(min(ROWS.value, len(batch['tokens']))):
    print(f'--- row {row}')
    for before, tokens, said in texts(batch, row):
      print(f'{before}{painted(tokenizer, tokens, said, marks)}')


if __name__ == '__main__':
  command.run(main)
