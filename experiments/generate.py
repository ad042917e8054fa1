"""Writes on from a prompt; standard output is the text alone.

python -m experiments.generate --model=DIR --prompt=TEXT [--max_new_tokens=200] [--temperature=0.8] [--top_p=0.95]
"""

import sys
from typing import Any

from absl import flags

from experiments import command, language
from gpt_jax.data import tokenizers
from gpt_jax.decoding.generate import stream
from gpt_jax.decoding.sampling import Sampling

MODEL = flags.DEFINE_string('model', None, 'the workdir of a training run')
PROMPT = flags.DEFINE_string('prompt', None, 'what the text begins with')
MAX_NEW_TOKENS = flags.DEFINE_integer('max_new_tokens', 200, 'tokens to write at most')
TEMPERATURE = flags.DEFINE_float('temperature', 0.8, '0: always the most likely token')
TOP_K = flags.DEFINE_integer('top_k', None, 'draw from the k most likely tokens')
TOP_P = flags.DEFINE_float('top_p', None, 'draw from the most likely tokens that together have this probability')
STOP = flags.DEFINE_multi_string('stop', [], 'end after this string; may be given again')
SEED = flags.DEFINE_integer('seed', 0, 'of the draws')


def main(_: Any) -> None:
  sampling = Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value)
  prompt = command.required(PROMPT)
  trained = language.load(command.required(MODEL))
  tokenizer = trained.tokenizer
  ids = [int(i) for i in tokenizer.encode(prompt)]
  pieces = stream(
    trained.model,
    trained.params,
    [ids],
    max_new_tokens=MAX_NEW_TOKENS.value,
    sampling=sampling,
    stop_ids=[] if tokenizer.end_of_text is None else [tokenizer.end_of_text],
    stop=STOP.value,
    decode=lambda written: tokenizers.decode(tokenizer, written),
    seed=SEED.value,
    stride=4,
  )
  written = (int(token) for (piece,) in pieces for token in piece.tokens if token != tokenizer.end_of_text)
  sys.stdout.write(prompt)
  for text in tokenizers.stream(tokenizer, written):
    sys.stdout.write(text)
    sys.stdout.flush()
  sys.stdout.write('\n')


if __name__ == '__main__':
  command.run(main)
