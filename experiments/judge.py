"""Lets several models go on with the same texts, and says what a judge thinks of each.

python -m experiments.judge --models=runs/policy,runs/instruct,asset:smollm2 --source=asset:vader --beginnings=6

Texts are the first tokens of held-out ones, by the vocabulary of the first model; other vocabularies read the same
characters. --prefix stands before each of them, to ask a model for something.
"""

import json
import pathlib
from typing import Any

from absl import flags

from experiments import command, language, prompts, rewards, samples
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.evaluation import pages
from gpt_jax.rollouts import Writing
from gpt_jax.training.workdir import write_whole
from gpt_jax.types import UserError

MODELS = flags.DEFINE_list('models', None, f'by commas, each {language.MODEL}')
SOURCE = flags.DEFINE_string('source', None, 'of texts: asset:NAME, file:PATH.jsonl, tfds:NAME or hf:NAME')
SPLIT = flags.DEFINE_enum('split', 'validation', ['train', 'validation'], 'which part of the source')
HELD_OUT = flags.DEFINE_float('held_out', 0.1, 'fraction, where the source has no validation split of its own')
BEGINNINGS = flags.DEFINE_integer('beginnings', 6, 'tokens of a text that are gone on with', lower_bound=1)
NUM_PROMPTS = flags.DEFINE_integer('prompts', 512, 'texts at most', lower_bound=1)
PREFIX = flags.DEFINE_string('prefix', '', 'what stands before every text, such as "A glad review: "')
JUDGE = flags.DEFINE_string('judge', 'vader', "a function of experiments.rewards: 'vader', 'answer'")
POSITIVE_ABOVE = flags.DEFINE_float('positive_above', 0.05, 'share of responses that the judge scores higher')
MAX_NEW_TOKENS = flags.DEFINE_integer('max_new_tokens', 26, 'tokens of a response at most', lower_bound=1)
TEMPERATURE = flags.DEFINE_float('temperature', 1.0, 'divides the logits')
SEED = flags.DEFINE_integer('seed', 0, 'of the draws')
OUT = flags.DEFINE_string('out', None, 'a file of JSON lines for the texts; none if not given')


def main(_: Any) -> None:
  names = command.required(MODELS)
  if TEMPERATURE.value <= 0:
    raise UserError(f'--temperature={TEMPERATURE.value} must be above 0')
  first = language.weights(names[0])
  how = {'source': command.required(SOURCE), 'held_out': HELD_OUT.value, 'prompt_tokens': BEGINNINGS.value}
  asked = prompts.some(prompts.of_split({**how, 'beginnings': True}, first, SPLIT.value), NUM_PROMPTS.value)
  table, texts = samples.compared(
    {name: name for name in names},
    [(rewards.text(first.tokenizer, ids), record) for ids, record in asked],
    lambda tokenizer: Writing(MAX_NEW_TOKENS.value, Sampling(TEMPERATURE.value), stop_ids=prompts.ends(tokenizer)),
    JUDGE.value,
    POSITIVE_ABOVE.value,
    seed=SEED.value,
    prefix=PREFIX.value,
  )
  print(pages.markdown(table))
  if OUT.value is not None:
    lines = (json.dumps(line) + '\n' for line in texts.to_dict('records'))
    write_whole(pathlib.Path(OUT.value), ''.join(lines))
    print(f'{OUT.value} has what each wrote after {len(texts)} texts.')


if __name__ == '__main__':
  command.run(main)
