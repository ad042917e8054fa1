"""What a policy writes after held-out prompts, and what is said of it."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
from jaxtyping import Float
import numpy as np
import pandas as pd

from experiments import language, prompts, reading, rewards, runs
from experiments.prompts import Asked
from gpt_jax.data import tokenizers
from gpt_jax.data.tokenizers import Tokenizer
from gpt_jax.evaluation.text import distinct
from gpt_jax.rollouts import Response, Rollouts, Writing
from gpt_jax.training.workdir import write_whole
from gpt_jax.types import Params


def counted(responses: Sequence[Response]) -> dict[str, float]:
  """What can be told of responses without reading them."""
  texts = [one.tokens for one in responses]
  return {
    'length': float(np.mean([len(text) for text in texts])),
    'ended': float(np.mean([one.ended for one in responses])),
    'distinct_1': distinct(texts, 1),
    'distinct_2': distinct(texts, 2),
  }


def verdict(judgements: Float[np.ndarray, 'B'], positive_above: float) -> dict[str, float]:
  """Of a judge: the mean, and the share of what it finds positive."""
  return {'judge': float(np.mean(judgements)), 'positive_share': float(np.mean(judgements > positive_above))}


def compared(
  models: Mapping[str, str],
  asked: Sequence[tuple[str, Mapping[str, Any]]],
  writing: Callable[[Tokenizer], Writing],
  judge: str,
  positive_above: float,
  *,
  seed: int,
  prefix: str = '',
) -> tuple[pd.DataFrame, pd.DataFrame]:
  """What models write after the same texts: figures, a row a model, and the texts beside each other, a row a prompt.

  Args:
    models: what --model takes, by the name that each is to have.
    asked: texts, and the records that they come from.
    writing: how they write, by their tokenizer.
    judge: one of `rewards.FUNCTIONS`.
    positive_above: share of responses that the judge scores higher.
    seed: of the draws.
    prefix: stands before every text.
  """
  rows, texts = [], {'prompt': [text for text, _ in asked]}
  for name, where in models.items():
    trained = language.load(where)
    ids = [language.prompt_ids(trained, prefix + text) for text, _ in asked]
    known = {tuple(prompt): record for prompt, (_, record) in zip(ids, asked, strict=True)}
    judges = rewards.of_function(judge, 'judge', trained.tokenizer, known)
    write = writing(trained.tokenizer)
    length = max(map(len, ids)) + write.max_new_tokens
    runs.check_context(trained.model.config, length, f'{name}: a prompt and max_new_tokens')
    responses = write(trained.model, trained.params, ids, seed=seed)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(trained.params))
    told = {**verdict(judges(responses), positive_above), **counted(responses)}
    rows.append({'model': name, 'parameters': parameters, **told})
    texts[name] = [rewards.text(trained.tokenizer, one.tokens) for one in responses]
  return pd.DataFrame(rows), pd.DataFrame(texts)


def judged(
  config: Mapping[str, Any],
  found: language.Weights,
  source: Rollouts,
  asked: Sequence[Asked],
  known: Mapping[tuple[int, ...], Any],
  folder: pathlib.Path,
) -> reading.Evaluation:
  """What the policy writes after held-out prompts: its reward, what a judge says that nothing learned from, its wealth.

  The texts go to samples.jsonl.
  """
  how = config['evaluation']
  chosen = [ids for ids, _ in prompts.some(asked, how['prompts'])]
  writing = dataclasses.replace(source.writing, num_samples=1)
  decode = functools.partial(tokenizers.decode, found.tokenizer)
  judge = rewards.of_function(how['judge'], 'config.evaluation.judge', found.tokenizer, known) if how['judge'] else None

  def evaluation(params: Params) -> dict[str, float]:
    responses = writing(source.model, params, chosen, seed=config['seed'] + 1)
    scores = source.reward(responses)
    kl, nll = source.divergence(params, responses)
    values = {
      'reward': float(np.mean(scores)), 'kl': kl, 'reference_perplexity': float(np.exp(nll)), **counted(responses),
    }  # fmt: skip
    lines = [
      {'prompt': decode(one.prompt), 'response': decode(one.tokens), 'reward': float(score)}
      for one, score in zip(responses, scores, strict=True)
    ]
    if judge is not None:
      judgements = judge(responses)
      values |= verdict(judgements, how['positive_above'])
      lines = [{**line, 'judge': float(said)} for line, said in zip(lines, judgements, strict=True)]
    write_whole(folder / 'samples.jsonl', ''.join(json.dumps(line) + '\n' for line in lines))
    for line in lines[:3]:
      print(f'  {line["prompt"]!r} -> {line["response"]!r} ({line["reward"]:.2f})', flush=True)
    return values

  return evaluation
