"""How well a trained model predicts text: loss in nats a token, perplexity, bits per byte.

python -m experiments.evaluate --model=DIR [--source=file:PATH] [--split=validation] [--context=256]
"""

import json
from typing import Any

from absl import flags

from experiments import command, language

MODEL = flags.DEFINE_string('model', None, 'the workdir of a training run')
SOURCE = flags.DEFINE_string('source', None, 'text to evaluate on; not given: what the model was trained on')
SPLIT = flags.DEFINE_enum('split', 'validation', ['train', 'validation'], 'of the source')
HELD_OUT = flags.DEFINE_float(
  'held_out', None, 'the last part of a file that is its validation split; all of a file: 0, and --split=train'
)
CONTEXT = flags.DEFINE_integer('context', None, "tokens a row; not given: the run's")
BATCH_SIZE = flags.DEFINE_integer('batch_size', 32, 'rows at a time')


def main(_: Any) -> None:
  trained = language.load(command.required(MODEL))
  config = dict(trained.config)
  given = {'source': SOURCE.value, 'held_out': HELD_OUT.value}
  config['data'] = {**config['data'], **{name: value for name, value in given.items() if value is not None}}
  config['context'] = CONTEXT.value or config['context']
  language.check_context(trained.model.config, config['context'])
  rows = language.rows(config, trained.tokenizer, SPLIT.value, drop_remainder=False)
  print(json.dumps(language.validation(trained.model, rows, BATCH_SIZE.value)(trained.params), indent=2))


if __name__ == '__main__':
  command.run(main)
