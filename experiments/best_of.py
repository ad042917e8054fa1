"""Writes n responses to each prompt and keeps the best by a reward: best-of-n, and the data of rejection sampling.

python -m experiments.best_of --model=runs/instruct --reward=runs/reward --source=asset:vader --beginnings=6 --n=16 \\
  --out=best.jsonl

A line of the output is {"prompt", "answer", "reward", "first_reward"}: what experiments.instruct learns from, so that
rejection sampling (Touvron et al. 2023, section 3.2.3) is this command and that one, in turn.
"""

import functools
import json
import math
import pathlib
from typing import Any

from absl import flags
import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from experiments import command, language, prompts, rewards, runs
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.rollouts import Writing
from gpt_jax.training.workdir import write_whole
from gpt_jax.types import UserError

MODEL = flags.DEFINE_string('model', None, language.MODEL)
REWARD = flags.DEFINE_string('reward', None, 'a finished run of experiments.reward')
FUNCTION = flags.DEFINE_string('function', None, "a function of experiments.rewards in its place: 'vader', 'answer'")
SOURCE = flags.DEFINE_string('source', None, 'of prompts: asset:NAME, file:PATH.jsonl, tfds:NAME or hf:NAME')
SPLIT = flags.DEFINE_enum('split', 'train', ['train', 'validation'], 'which part of the source')
HELD_OUT = flags.DEFINE_float('held_out', 0.1, 'fraction, where the source has no validation split of its own')
BEGINNINGS = flags.DEFINE_integer('beginnings', 0, 'prompts are the first so many tokens of texts; 0: whole prompts')
PROMPT_TOKENS = flags.DEFINE_integer('prompt_tokens', 64, 'of a whole prompt at most; longer ones are left out')
LIMIT = flags.DEFINE_integer('limit', 0, 'the first prompts alone; 0: all')
N = flags.DEFINE_integer('n', 16, 'responses to each prompt', lower_bound=1)
MAX_NEW_TOKENS = flags.DEFINE_integer('max_new_tokens', 24, 'tokens of a response at most', lower_bound=1)
TEMPERATURE = flags.DEFINE_float('temperature', 1.0, 'divides the logits')
BATCH_SIZE = flags.DEFINE_integer('batch_size', 16, 'prompts at a time', lower_bound=1)
SEED = flags.DEFINE_integer('seed', 0, 'of the draws')
OUT = flags.DEFINE_string('out', None, 'the file that is written')


def main(_: Any) -> None:
  name, out = command.required(MODEL), pathlib.Path(command.required(OUT))
  if (REWARD.value is None) == (FUNCTION.value is None):
    raise UserError('give either --reward or --function')
  if TEMPERATURE.value <= 0:
    raise UserError(f'--temperature={TEMPERATURE.value} must be above 0: n greedy responses are one')
  found, limit = language.weights(name), BEGINNINGS.value or PROMPT_TOKENS.value
  data = {'source': command.required(SOURCE), 'held_out': HELD_OUT.value, 'prompt_tokens': limit}
  asked = prompts.of_split({**data, 'beginnings': bool(BEGINNINGS.value)}, found, SPLIT.value)[: LIMIT.value or None]
  runs.check_context(found.config, limit + MAX_NEW_TOKENS.value, 'a prompt and --max_new_tokens')
  if FUNCTION.value is not None:
    known = {tuple(ids): record for ids, record in asked}
    reward = rewards.of_function(FUNCTION.value, '--function', found.tokenizer, known)
  else:
    reward = rewards.of_model(
      command.required(REWARD), found.tokenizer, limit + MAX_NEW_TOKENS.value, BATCH_SIZE.value * N.value
    )
  trained, ends = language.load(name, stacked=False), prompts.ends(found.tokenizer)
  writing = Writing(MAX_NEW_TOKENS.value, Sampling(TEMPERATURE.value), stop_ids=ends, num_samples=N.value)
  text = functools.partial(rewards.text, found.tokenizer)
  lines, scores = [], []
  for start in tqdm(range(0, len(asked), BATCH_SIZE.value), unit='batch', leave=False):
    batch = [ids for ids, _ in asked[start : start + BATCH_SIZE.value]]
    responses = writing(trained.model, trained.params, batch, seed=SEED.value, first_row=start)
    found_scores = reward(responses).reshape(len(batch), N.value)
    for row, ids in enumerate(batch):
      best = int(found_scores[row].argmax())
      answer = text(responses[row * N.value + best].tokens)
      each = {'reward': float(found_scores[row, best]), 'first_reward': float(found_scores[row, 0])}
      lines.append({'prompt': text(ids), 'answer': answer, **each})
    scores.append(found_scores)
  write_whole(out, ''.join(json.dumps(line) + '\n' for line in lines))
  print(by_number(np.concatenate(scores)))
  print(f'{out} has the best of {N.value} responses to each of {len(lines):,} prompts.')


def by_number(scores: np.ndarray) -> str:
  """The mean best reward of 1, 2, 4, ... responses, and the KL that costs (Nakano et al. 2021: log n - (n - 1) / n)."""
  counts = sorted({*(2**k for k in range(scores.shape[1].bit_length())), scores.shape[1]} - {0})
  rows = [
    (n, float(scores[:, :n].max(axis=1).mean()), math.log(n) - (n - 1) / n) for n in counts if n <= scores.shape[1]
  ]
  return tabulate(rows, ['best of', 'reward', 'KL (nats)'], floatfmt='.3f')


if __name__ == '__main__':
  command.run(main)
