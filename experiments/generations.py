"""Text to learn from that a model wrote itself, kept in the folder of the run that learns from it."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import pathlib
from typing import Any

from jaxtyping import Int
import numpy as np
from tqdm import tqdm

from experiments import language, reading
from gpt_jax import hosts
from gpt_jax.data import mixture
from gpt_jax.data.answers import Answers, answered
from gpt_jax.data.rows import Dataset
from gpt_jax.data.sources import documents
from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.names import choose
from gpt_jax.training.workdir import write_whole
from gpt_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Data:
  """What a run learns from, and what is held out."""

  train: Sequence[Dataset]
  weights: Sequence[float]
  """Of the mixture."""
  validation: Sequence[Dataset]

  @property
  def context(self) -> int:
    return self.train[0].context

  def frequent_tokens(self, number: int, vocab_size: int) -> Int[np.ndarray, ' number']:
    """The tokens most often learned from, in order; of equals those of smaller number."""
    shares = np.zeros(vocab_size)
    for part, weight in zip(self.train, self.weights, strict=True):
      rows = part.batch(np.array(_spread(len(part), ROWS_COUNTED)))
      counts = np.bincount(rows['tokens'][rows['weights'] > 0], minlength=vocab_size)
      shares += weight * counts / len(rows['tokens'])
    return np.sort(np.argsort(-shares, kind='stable')[:number]).astype(np.int32)

  def batches(self, config: Mapping[str, Any], share: Mapping[str, int]) -> mixture.Source:
    """This process's share of the batch of each step."""
    return mixture.prefetched(mixture.batches(self.train, self.weights, config['batch_size'], config['seed'], **share))


ROWS_COUNTED = 4096
"""Rows of each source at most, from all over it, in which tokens are counted."""


def data(config: Mapping[str, Any], workdir: str, trained: language.Trained, name: str) -> Data:
  """The text of config.data or, with config.generate.rows, what the model `name` writes after prompts taken from it."""
  how = config['generate']
  if not how['rows']:
    number = config['eval_rows'] * config['context']
    rows = lambda split, **more: reading.rows(config, trained.tokenizer, split, begin=trained.begin, **more)
    return Data(
      rows('train', drop_remainder=True),
      reading.weights_of(config['data']),
      rows('validation', drop_remainder=False, num_tokens=number),
    )
  make = choose('config.generate.prompts', how['prompts'], PROMPTS)
  pairs = []
  for split, number in (('train', how['rows']), ('validation', how['held_out_rows'])):
    prompts = make(config, trained, split, number)
    pairs.append(generations(pathlib.Path(workdir), split, trained, how, config['seed'], name, prompts))
  longest = max(len(prompt) + len(answer) for found in pairs for prompt, answer in found)
  context = min(-(-longest // 16) * 16, trained.context or longest)
  train, validation = (Answers([answered(*pair) for pair in found], context) for found in pairs)
  return Data([train], [1.0], [validation])


Prompts = list[list[int]]


def _pieces(config: Mapping[str, Any], trained: language.Trained, split: str, number: int) -> Prompts:
  """Pieces of the text, to be gone on from."""
  whole = {**config, 'data': {**config['data'], 'separate_documents': False}}
  size = config['generate']['prompt_tokens']
  rows = reading.rows(whole, trained.tokenizer, split, drop_remainder=True, context=size - 1)
  places = [(part, i) for part in rows for i in range(len(part))]
  chosen = [places[i] for i in _spread(len(places), number)]
  return [[*trained.begin, *part.batch(np.array([i]))['tokens'][0].tolist()] for part, i in chosen]


def _requests(config: Mapping[str, Any], trained: language.Trained, split: str, number: int) -> Prompts:
  """Requests made of lines of the text, in the model's chat template."""
  requests = config['generate']['requests']
  for request in requests or ('',):
    if request.count('{}') != 1:
      raise UserError(f'config.generate.requests: {request!r} must have {{}} once, where a line of the text goes')
  names, held_out = reading.sources_of(config['data']), config['data']['held_out']
  lines = [line for name in names for text in documents(name, split, held_out) for line in text.splitlines()]
  lines = [line for line in lines if line.strip()]
  prompts = []
  for place, i in enumerate(_spread(len(lines), number)):
    ids = trained.tokenizer.encode(lines[i])[: config['generate']['prompt_tokens']]
    request = requests[place % len(requests)].replace('{}', trained.decode(ids.tolist()))
    prompts.append(language.chat_ids(trained, [{'role': 'user', 'content': request}]))
  return prompts


PROMPTS = {'text': _pieces, 'chat': _requests}
"""How prompts are made of text, by name."""


def _spread(total: int, number: int) -> list[int]:
  """`number` of `total` places at even distances; all of them, if there are fewer."""
  return [place * total // min(number, total) for place in range(min(number, total))]


def generations(
  workdir: pathlib.Path,
  split: str,
  trained: language.Trained,
  how: Mapping[str, Any],
  seed: int,
  name: str,
  prompts: Prompts,
) -> list[tuple[list[int], list[int]]]:
  """Each prompt and what the model writes after it, written once to DIR/generations/SPLIT.jsonl as tokens.

  Broken off, it goes on behind the last whole line; draws are by the prompt's number, so that nothing else shows. What
  another model wrote, or in another way, is written anew.
  """
  path = workdir / 'generations' / f'{split}.jsonl'
  path.parent.mkdir(parents=True, exist_ok=True)
  made_by = {'model': name, 'seed': seed, 'prompts': len(prompts), **how}
  del made_by['batch_size']
  kept = list(_whole_lines(path))
  lines = kept[1 : len(prompts) + 1] if kept and kept[0] == json.loads(json.dumps(made_by)) else []
  hosts.meet('generations are read')
  write_whole(path, ''.join(json.dumps(line) + '\n' for line in [made_by, *lines]))
  size, sampling = how['batch_size'], Sampling(how['temperature'])
  with (
    hosts.written(path).open('a') as file,
    tqdm(desc=f'generate {split}', total=len(prompts), initial=len(lines), unit='prompt', leave=False) as bar,
  ):
    for start in range(len(lines), len(prompts), size):
      batch = prompts[start : start + size]
      found = generate(
        trained.model, trained.params, batch, max_new_tokens=how['max_new_tokens'], sampling=sampling,
        stop_ids=trained.tokenizer.conventions.ends, seed=seed, context=trained.context, first_row=start,
      )  # fmt: skip
      new = [{'prompt': prompt, 'answer': one.tokens.tolist()} for prompt, one in zip(batch, found, strict=True)]
      file.write(''.join(json.dumps(line) + '\n' for line in new))
      file.flush()
      lines += new
      bar.update(len(new))
  return [(line['prompt'], line['answer']) for line in lines]


def _whole_lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Objects of JSON lines up to one that was torn."""
  for text in path.read_text().split('\n')[:-1] if path.exists() else ():
    try:
      yield json.loads(text)
    except ValueError:
      return
