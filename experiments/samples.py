"""What a policy writes after held-out prompts, and what is said of it."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np

from experiments import language, rewards
from experiments.prompts import Asked
from gpt_jax.data import tokenizers
from gpt_jax.evaluation.text import distinct
from gpt_jax.rollouts import Rollouts
from gpt_jax.training.workdir import write_whole
from gpt_jax.types import Params


def judged(
  config: Mapping[str, Any],
  found: language.Weights,
  source: Rollouts,
  asked: Sequence[Asked],
  known: Mapping[tuple[int, ...], Any],
  folder: pathlib.Path,
) -> language.Evaluation:
  """What the policy writes after held-out prompts: its reward, what a judge says that nothing learned from, its wealth.

  The texts go to samples.jsonl.
  """
  how = config['evaluation']
  step = max(len(asked) // how['prompts'], 1)
  chosen = [ids for ids, _ in asked[::step][: how['prompts']]]
  writing = dataclasses.replace(source.writing, num_samples=1)
  decode = functools.partial(tokenizers.decode, found.tokenizer)
  judge = rewards.of_function(how['judge'], 'config.evaluation.judge', found.tokenizer, known) if how['judge'] else None

  def evaluation(params: Params) -> dict[str, float]:
    responses = writing(source.model, params, chosen, seed=config['seed'] + 1)
    scores = source.reward(responses)
    kl, nll = source.divergence(params, responses)
    values = {
      'reward': float(np.mean(scores)), 'kl': kl, 'reference_perplexity': float(np.exp(nll)),
      'length': float(np.mean([len(one.tokens) for one in responses])),
      'ended': float(np.mean([one.ended for one in responses])),
      'distinct_1': distinct([one.tokens for one in responses], 1),
      'distinct_2': distinct([one.tokens for one in responses], 2),
    }  # fmt: skip
    lines = [
      {'prompt': decode(one.prompt), 'response': decode(one.tokens), 'reward': float(score)}
      for one, score in zip(responses, scores, strict=True)
    ]
    if judge is not None:
      judgements = judge(responses)
      values |= {
        'judge': float(np.mean(judgements)),
        'positive_share': float(np.mean(judgements > how['positive_above'])),
      }
      lines = [{**line, 'judge': float(said)} for line, said in zip(lines, judgements, strict=True)]
    write_whole(folder / 'samples.jsonl', ''.join(json.dumps(line) + '\n' for line in lines))
    for line in lines[:3]:
      print(f'  {line["prompt"]!r} -> {line["response"]!r} ({line["reward"]:.2f})', flush=True)
    return values

  return evaluation
