"""How well a model predicts text: loss in nats a token, perplexity, bits per byte, perplexity of a byte.

python -m experiments.evaluate --model=MODEL [--source=file:PATH] [--split=validation] [--context=1024] [--stride=512]

Each token is predicted once: rows of `context` tokens begin `stride` tokens apart, and of a row only what the last one
did not reach counts. A smaller stride is slower and gives every token more to go by; without one, rows meet end to end.
"""

import json
from typing import Any

from absl import flags

from experiments import blanks, command, model_flags, reading
from gpt_jax.types import UserError

SOURCE = flags.DEFINE_string('source', None, 'text to evaluate on; not given: what the run was trained on')
SPLIT = flags.DEFINE_enum('split', 'validation', ['train', 'validation'], 'of the source')
HELD_OUT = flags.DEFINE_float(
  'held_out', None, 'the last part of a file that is its validation split; all of a file: 0, and --split=train'
)
CONTEXT = flags.DEFINE_integer(
  'context', None, "tokens a row; not given: the run's, or 1024 if the model was made for as many"
)
STRIDE = flags.DEFINE_integer('stride', None, 'tokens from the start of a row to that of the next; not given: context')
NUM_TOKENS = flags.DEFINE_integer('num_tokens', 0, 'predict the first ones alone; 0: all')
BATCH_SIZE = flags.DEFINE_integer('batch_size', None, 'rows at a time; not given: 32 for a run, 1 for other models')

FOREIGN = {'data': {'source': '', 'held_out': 0.1, 'separate_documents': False}, 'context': 1024}
"""What a run's config would say."""


def main(_: Any) -> None:
  trained = model_flags.load()
  foreign = trained.config is None
  config = dict(trained.config or FOREIGN)
  given = {'source': SOURCE.value, 'held_out': HELD_OUT.value}
  config['data'] = {**config['data'], **{name: value for name, value in given.items() if value is not None}}
  if not config['data']['source']:
    raise UserError('--source is missing: give file:PATH, asset:NAME, tfds:NAME or hf:NAME')
  limit = trained.context and trained.context - len(trained.begin)
  config['context'] = CONTEXT.value or min(config['context'], limit or config['context'])
  if limit is not None and config['context'] > limit:
    raise UserError(f'--context={config["context"]} exceeds the {limit} tokens that the model was made for')
  rows = blanks.as_written(
    config, trained.tokenizer, trained.model.config, SPLIT.value, context=config['context'],
    num_tokens=NUM_TOKENS.value, stride=STRIDE.value, begin=trained.begin,
  )  # fmt: skip
  batch_size = BATCH_SIZE.value or (1 if foreign else 32)
  result = reading.validation(trained.model, rows, batch_size)(trained.params)
  print(json.dumps({**result, 'byte_perplexity': 2 ** result['bits_per_byte']}, indent=2))


if __name__ == '__main__':
  command.run(main)
