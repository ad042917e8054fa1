"""Writes on from a prompt, or answers it; standard output is the text alone.

python -m experiments.generate --model=MODEL --prompt=TEXT [--max_new_tokens=200] [--temperature=0.8] [--top_p=0.95]
python -m experiments.generate --model=MODEL --chat --prompt=QUESTION [--system=TEXT] [--temperature=0]
python -m experiments.generate --model=MODEL --prompts=FILE.jsonl --out=FILE.jsonl [--batch_size=8]
python -m experiments.generate --model=MODEL --prompt=TEXT --num_beams=4 [--length_penalty=0.6]
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import json
import pathlib
import sys
from typing import Any, TextIO

from absl import flags
from tqdm import tqdm

from experiments import blanks, command, decoding_flags, language
from gpt_jax.data import tokenizers
from gpt_jax.decoding.beam import beam_search
from gpt_jax.decoding.generate import Completion, generate, joined, stream
from gpt_jax.types import UserError

PROMPT = flags.DEFINE_string('prompt', None, 'what the text begins with; with --chat, a question')
PROMPTS = flags.DEFINE_string('prompts', None, 'JSON lines, each with "prompt", or "messages" for --chat')
OUT = flags.DEFINE_string('out', None, 'where the completions of --prompts go: their lines, with "completion"')
BATCH_SIZE = flags.DEFINE_integer('batch_size', 8, 'of --prompts: prompts at a time', lower_bound=1)
CHAT = flags.DEFINE_boolean('chat', False, "prompts are questions, asked by the model's chat template")
NUM_SAMPLES = flags.DEFINE_integer('num_samples', 1, 'completions of each prompt, which is read once', lower_bound=1)
SYSTEM = flags.DEFINE_string('system', None, 'of --chat: what the model is told first')
NUM_BEAMS = flags.DEFINE_integer(
  'num_beams', None, 'nothing is drawn: search for the likeliest text, with so many side by side', lower_bound=1
)
LENGTH_PENALTY = flags.DEFINE_float(
  'length_penalty', None, 'of --num_beams: log p of a text is divided by its length to this power [1]'
)


def main(_: Any) -> None:
  if (PROMPT.value is None) == (PROMPTS.value is None):
    raise UserError('give --prompt=TEXT, or --prompts=FILE.jsonl with --out=FILE.jsonl')
  check_beams()
  if PROMPTS.value is None:
    write(command.required(PROMPT))
  else:
    write_all(pathlib.Path(PROMPTS.value), pathlib.Path(command.required(OUT)))


def write(prompt: str) -> None:
  """One text to the terminal, as it comes; of --chat, the answer alone."""
  if NUM_SAMPLES.value > 1:
    raise UserError('--num_samples writes several texts: give --prompts=FILE.jsonl with --out=FILE.jsonl')
  trained, how = decoding_flags.load()
  if trained.marks is not None:
    check_blanks()
    ((_, said),) = filled(trained, how, [prompt], 0)
    print(said['completion'])
    return
  ids, ends = ids_of(trained, {'prompt': prompt}), trained.tokenizer.conventions.ends
  pieces: list[Completion] = []

  def texts() -> Iterator[list[Completion]]:
    if NUM_BEAMS.value is None:
      seed, context = decoding_flags.SEED.value, trained.context
      yield from stream(trained.model, trained.params, [ids], **how, seed=seed, stride=4, context=context)
    else:
      yield best(trained, how, [ids], NUM_BEAMS.value)

  def written() -> Iterator[int]:
    for (piece,) in texts():
      pieces.append(piece)
      yield from (int(token) for token in piece.tokens if token not in ends)

  sys.stdout.write('' if CHAT.value else prompt)
  for text in tokenizers.stream(trained.tokenizer, written()):
    sys.stdout.write(text)
    sys.stdout.flush()
  sys.stdout.write('\n')
  sys.stdout.flush()
  report(pieces)


def report(pieces: Sequence[Completion]) -> None:
  """What became of a draft's proposals, on standard error; nothing where there is no draft."""
  whole = joined(pieces)
  if whole.tried:
    alpha, gained = whole.kept / whole.tried, (len(whole.tokens) - 1) / whole.steps
    print(f'({gained:.2f} tokens a step; of the candidates weighed {100 * alpha:.0f}% were kept)', file=sys.stderr)


def write_all(prompts: pathlib.Path, out: pathlib.Path) -> None:
  """A line for each completion of each prompt, in order: the same whatever the batch size, but for rounding."""
  lines = list(read_lines(prompts))
  partial = out.with_name(out.name + '.partial')
  writable(partial).close()
  trained, how = decoding_flags.load()
  asked: Sequence[Any]
  complete: Callable[..., Said]
  if trained.marks is None:
    asked, complete = [ids_of(trained, line) for line in lines], continued
  else:
    check_blanks()
    asked, complete = [line['prompt'] for line in lines], filled
  with writable(partial) as file, tqdm(total=len(lines), unit='prompt', disable=None) as bar:
    for first in range(0, len(lines), BATCH_SIZE.value):
      batch = asked[first : first + BATCH_SIZE.value]
      for number, said in complete(trained, how, batch, first):
        file.write(json.dumps({**lines[first + number], **said}, ensure_ascii=False) + '\n')
      bar.update(len(batch))
  partial.replace(out)


Said = Iterator[tuple[int, dict[str, Any]]]
"""The number of a prompt, and what there is to say of what the model wrote."""


def continued(trained: language.Trained, how: Mapping[str, Any], batch: Sequence[Sequence[int]], first: int) -> Said:
  """What was written on from prompts, of which the first has the number `first`."""
  ends = trained.tokenizer.conventions.ends
  if NUM_BEAMS.value is None:
    completions = generate(
      trained.model, trained.params, batch, **how, seed=decoding_flags.SEED.value, context=trained.context,
      first_row=first, num_samples=NUM_SAMPLES.value,
    )  # fmt: skip
  else:
    completions = best(trained, how, batch, NUM_BEAMS.value)
  for number, found in enumerate(completions):
    text = trained.decode([token for token in found.tokens.tolist() if token not in ends])
    yield (
      number // NUM_SAMPLES.value, {'completion': text, 'finish': found.finish, 'num_tokens': len(found.tokens)},
    )  # fmt: skip


def filled(trained: language.Trained, how: Mapping[str, Any], batch: Sequence[str], first: int) -> Said:
  """Prompts with their blanks filled, and what was put there."""
  found = blanks.fill_texts(
    trained.model, trained.params, trained.tokenizer, batch, context=trained.context, first_row=first,
    seed=decoding_flags.SEED.value, **how,
  )  # fmt: skip
  for number, text in enumerate(found):
    spans = [trained.decode(text.span(place)) for place in text.blanks]
    yield number, {'completion': trained.decode(text.whole), 'blanks': spans}


def check_blanks() -> None:
  """Raises UserError where a model that fills blanks is given flags of others."""
  for flag in (flags.FLAGS[name] for name in ('num_beams', 'num_samples', 'chat')):
    if flag.present and flag.value:
      raise UserError(f'--{flag.name} does not go with a model that fills blanks: leave it out')


def check_beams() -> None:
  """Raises UserError where flags of drawing are given to a search, or those of a search without beams."""
  if NUM_BEAMS.value is None:
    if LENGTH_PENALTY.value is not None:
      raise UserError('--length_penalty is of beam search: give --num_beams too')
    return
  drawing = ('temperature', 'top_k', 'top_p', 'min_p', 'num_samples', 'draft', 'medusa')
  for flag in (flags.FLAGS[name] for name in drawing):
    # A temperature of 0 draws nothing either.
    if flag.present and flag.value:
      raise UserError(f'--{flag.name} does not go with --num_beams, which draws nothing: leave one of them out')
  if decoding_flags.STOP.value:
    raise UserError('--stop does not go with --num_beams, whose texts end with a token: leave one of them out')


def best(
  trained: language.Trained, how: Mapping[str, Any], prompts: Sequence[Sequence[int]], num_beams: int
) -> list[Completion]:
  """The likeliest text after each prompt, as far as so many beams can tell."""
  found = beam_search(
    trained.model, trained.params, prompts, max_new_tokens=how['max_new_tokens'], num_beams=num_beams,
    length_penalty=1.0 if LENGTH_PENALTY.value is None else LENGTH_PENALTY.value, stop_ids=how['stop_ids'],
    processors=how['sampling'].processors, context=trained.context,
  )  # fmt: skip
  return [Completion(beam.tokens, beam.log_probabilities, beam.finish) for (beam,) in found]


def writable(path: pathlib.Path) -> TextIO:
  """A new file."""
  try:
    return path.open('w')
  except OSError as error:
    raise UserError(f'--out={path.parent} can not be written to: {error.strerror}') from None


def read_lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The objects of a file of JSON lines.

  Raises:
    UserError: it names the line that is none.
  """
  wanted = 'messages' if CHAT.value else 'prompt'
  try:
    lines = path.read_text().splitlines()
  except OSError as error:
    raise UserError(f'--prompts={path} can not be read: {error.strerror}') from None
  for number, text in enumerate(lines, 1):
    try:
      line = json.loads(text) if text.strip() else None
    except ValueError as error:
      raise UserError(f'{path}, line {number}: not JSON ({error})') from None
    if line is None:
      continue
    if not isinstance(line, dict) or not (isinstance(line.get('prompt'), str) or wanted in line):
      raise UserError(f'{path}, line {number}: expected an object with a string "prompt"')
    yield line


def ids_of(trained: language.Trained, line: Mapping[str, Any]) -> list[int]:
  """The tokens of a prompt or, with --chat, of a question or of messages."""
  if not CHAT.value:
    return language.prompt_ids(trained, line['prompt'])
  told = [] if SYSTEM.value is None else [{'role': 'system', 'content': SYSTEM.value}]
  return language.chat_ids(trained, line.get('messages') or [*told, {'role': 'user', 'content': line['prompt']}])


if __name__ == '__main__':
  command.run(main)
