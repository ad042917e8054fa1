"""Documents by name: our corpora, files, TFDS and the Hugging Face hub."""

from collections.abc import Callable, Collection, Iterator, Mapping
import contextlib
import dataclasses
import functools
import glob
import gzip
import json
import pathlib
from typing import Any
import urllib.parse
import zlib

from gpt_jax import cache
from gpt_jax.names import choose, nearest
from gpt_jax.types import UserError

KINDS = ('asset', 'file', 'tfds', 'hf', 'gym')
SPLITS = ('train', 'validation')


@dataclasses.dataclass(frozen=True)
class Documents:
  """The texts of one split of one source, in an order that never changes; can be read again and again.

  Broken UTF-8 stands in them as surrogate escapes.
  """

  name: str
  identity: str
  """Changes when the texts do: a version, or sizes and times of files."""
  read: Callable[[], Iterator[str]] = dataclasses.field(repr=False)

  def __iter__(self) -> Iterator[str]:
    return self.read()


def documents(spec: str, split: str = 'train', held_out: float | int = 0.1) -> Documents:
  """The documents of a source.

  `asset:NAME`, one of our corpora, built on first use; `file:PATH`, a text (one document) or JSON lines with a field
  "text", either also as .gz, or a folder or glob of such; `tfds:NAME[/CONFIG]`; `hf:NAME[:CONFIG]`;
  `gym:TASK[?OPTION=VALUE&...]`, tasks of reasoning-gym with their answers.

  Args:
    spec: which source.
    split: 'train' or 'validation'.
    held_out: where the source has no validation or test split of its own, the last part that is held out: of the
      characters of files (the last document may be cut), of the documents of TFDS and the hub. 0 holds nothing out.
  """
  kind, name = _checked(spec, split, held_out)
  if kind == 'file':
    return _file(spec, name, split, held_out)
  if kind == 'hf':
    return _hub(spec, name, split, held_out)
  if kind == 'gym':
    tasks = records(spec, split, held_out)
    read = lambda: (f'{task["prompt"]} {task["answer"]}' for _, task in tasks)
    return Documents(f'{spec} ({split})', json.dumps([spec, split, held_out]), read)
  examples, builder, part = _built(spec, kind, name, split, held_out)
  return _from_builder(spec, split, examples, builder, part)


def _checked(spec: str, split: str, held_out: float | int) -> tuple[str, str]:
  """Kind and name of a source."""
  kind, _, name = spec.partition(':')
  if kind not in KINDS or not name:
    raise UserError(
      f'source {spec!r} is none of file:PATH, asset:NAME, tfds:NAME, hf:NAME, gym:NAME; {nearest(kind, KINDS)}'
    )
  if split not in SPLITS:
    raise UserError(f'source {spec!r}: split {split!r} is not one of {", ".join(SPLITS)}')
  if not 0 <= held_out < 1:
    raise UserError(f'source {spec!r}: held_out is {held_out}, expected a fraction from 0 up to 1')
  return kind, name


Record = tuple[str, Mapping[str, Any]]
"""Where it stands, for messages, and what it says."""


def records(spec: str, split: str = 'train', held_out: float | int = 0.1) -> list[Record]:
  """What a source says besides text: answers, preferences, ratings; the names of sources are those of `documents`.

  Files are of JSON lines, an object a line, of which the last part is held out.
  """
  kind, name = _checked(spec, split, held_out)
  if kind == 'file':
    found = [(place, record) for path in _paths(spec, name) for place, record in _objects(path)]
    cut = round(len(found) * (1 - held_out))
    return found[:cut] if split == 'train' else found[cut:]
  if kind == 'gym':
    tasks = _gym(spec, name)
    cut = round(len(tasks) * (1 - held_out))
    return tasks[:cut] if split == 'train' else tasks[cut:]
  if kind == 'hf':
    examples: Any = _hub_examples(spec, name, split, held_out)[0]
  else:
    examples = _built(spec, kind, name, split, held_out)[0]
  return [(f'{spec}, {split} record {number}', _plain(record)) for number, record in enumerate(examples)]


# --- files -----------------------------------------------------------------------------------------------------------


def _paths(spec: str, name: str) -> list[pathlib.Path]:
  path = pathlib.Path(name).expanduser()
  if path.is_dir():
    endings = ('.txt', '.jsonl', '.txt.gz', '.jsonl.gz')
    paths = sorted(file for file in path.rglob('*') if file.name.endswith(endings))
  elif glob.has_magic(name) and not path.exists():
    paths = sorted(pathlib.Path(match) for match in glob.glob(str(path), recursive=True))
  else:
    paths = [path]
  if not paths or not all(file.is_file() for file in paths):
    raise UserError(f'source {spec!r}: there is no such file, or no text in that folder')
  return paths


def _file(spec: str, name: str, split: str, held_out: float | int) -> Documents:
  paths = _paths(spec, name)
  stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in paths]
  read = functools.partial(_part, paths, split, held_out)
  return Documents(f'{spec} ({split})', json.dumps([stats, split, held_out]), read)


def _part(paths: list[pathlib.Path], split: str, held_out: float | int) -> Iterator[str]:
  """The first int(n (1 - held_out)) characters of all files are for training, the rest is held out."""
  everything = lambda: (text for path in paths for text in _texts(path))
  if not held_out:
    yield from everything() if split == 'train' else ()
    return
  cut = int(sum(map(len, everything())) * (1 - held_out))
  start = 0
  for text in everything():
    place = min(max(cut - start, 0), len(text))
    part = text[:place] if split == 'train' else text[place:]
    if part:
      yield part
    start += len(text)


def _texts(path: pathlib.Path) -> Iterator[str]:
  if path.name.removesuffix('.gz').endswith('.jsonl'):
    for place, record in _objects(path):
      if not isinstance(text := record.get('text'), str):
        raise UserError(f'{place}: expected an object with a string "text"')
      yield text
    return
  with _opened(path) as file:
    yield file.read().decode('utf-8', 'surrogateescape')


def _objects(path: pathlib.Path) -> Iterator[Record]:
  """Of JSON lines."""
  with _opened(path) as file:
    for number, line in enumerate(file, 1):
      if line.strip():
        yield f'{path}, line {number}', _object(line, f'{path}, line {number}')


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
  try:
    with gzip.open(path) if path.suffix == '.gz' else path.open('rb') as file:
      yield file
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise UserError(f'{path}: broken gzip ({error}); fetch or compress it again') from error
  except OSError as error:
    raise UserError(f'{path}: cannot be read ({error.strerror})') from error


def _object(line: bytes, place: str) -> Mapping[str, Any]:
  try:
    record = json.loads(line)
  except ValueError as error:
    raise UserError(f'{place}: not JSON ({error})') from error
  if not isinstance(record, dict):
    raise UserError(f'{place}: expected an object with named fields, such as a string "text"')
  return record


# --- data sets -------------------------------------------------------------------------------------------------------


def _part_of(available: Collection[str], split: str, held_out: float | int) -> str:
  """The data set's own held-out split if it has one, else the last of its training examples (TFDS slicing syntax)."""
  own = next((name for name in ('validation', 'valid', 'dev', 'test') if name in available), None)
  if own or not held_out:
    return 'train' if split == 'train' else own or 'train[:0]'
  kept = 100 - round(100 * held_out)
  return f'train[:{kept}%]' if split == 'train' else f'train[{kept}%:]'


def _text_field(fields: dict[str, bool], spec: str) -> str:
  """`fields`: is it text? by name."""
  texts = [name for name, is_text in fields.items() if is_text]
  if 'text' in texts or len(texts) == 1:
    return 'text' if 'text' in texts else texts[0]
  raise UserError(f'source {spec!r}: expected a field "text", or one text field; found {", ".join(fields) or "none"}')


def _plain(value: Any) -> Any:
  """Strings and lists, of what TFDS gives as bytes and arrays."""
  if isinstance(value, Mapping):
    return {name: _plain(inner) for name, inner in value.items()}
  if isinstance(value, bytes):
    return value.decode('utf-8', 'surrogateescape')
  if hasattr(value, 'tolist'):
    return _plain(value.tolist())
  return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _built(spec: str, kind: str, name: str, split: str, held_out: float | int) -> tuple[Any, Any, str]:
  """Examples of one of our corpora or of TFDS, what built them, and the part of it that they are."""
  if kind == 'asset':
    from gpt_jax.data import corpora  # TFDS takes a second to import

    choose('source asset', name, corpora.CORPORA)
    builder, part = corpora.corpus(name), split  # they have splits of their own
  else:
    builder = _tfds(spec, name)
    part = _part_of(builder.info.splits, split, held_out)
  return builder.as_data_source(split=part), builder, part


def _tfds(spec: str, name: str) -> Any:
  import tensorflow_datasets as tfds

  from gpt_jax.data.corpora import prepared

  try:
    return prepared(tfds.builder(name, data_dir=str(cache.folder() / 'tfds')))
  except tfds.core.registered.DatasetNotFoundError as error:
    known = tfds.list_builders(with_community_datasets=False)
    raise UserError(f'source {spec!r} is not in TFDS; {nearest(name, known)}'[:300]) from error
  except Exception as error:  # a builder may fail in any way: no network, a missing package
    said = next(iter(str(error).splitlines()), type(error).__name__)
    raise UserError(f'source {spec!r}: TFDS could not prepare it ({said})') from error


def _from_builder(spec: str, split: str, examples: Any, builder: Any, part: str) -> Documents:
  import tensorflow_datasets as tfds

  field = _text_field({key: isinstance(kind, tfds.features.Text) for key, kind in builder.info.features.items()}, spec)
  identity = json.dumps([builder.info.full_name, part, len(examples), builder.info.dataset_size])
  read = lambda: (example[field].decode('utf-8', 'surrogateescape') for example in examples)
  return Documents(f'{spec} ({split})', identity, read)


def _gym(spec: str, name: str) -> list[Record]:
  """Tasks of reasoning-gym, whose answers can be checked: gym:chain_sum?max_terms=2&size=500&seed=0."""
  try:
    import reasoning_gym
  except ImportError as error:
    raise UserError(f'source {spec!r} needs the reasoning-gym library: pip install reasoning-gym') from error
  task, _, query = name.partition('?')
  try:
    options = {field: json.loads(value) for field, value in urllib.parse.parse_qsl(query, strict_parsing=bool(query))}
    tasks = list(reasoning_gym.create_dataset(task, **{'size': 500, 'seed': 0, **options}))
  except Exception as error:  # no such task or option, or values that it refuses: the library says which
    said = next(iter(str(error).splitlines()), type(error).__name__)
    raise UserError(f'source {spec!r}: could not be made ({said})') from error
  return [
    (f'{spec}, task {number}', {'prompt': made['question'], 'answer': made['answer'], 'metadata': made['metadata']})
    for number, made in enumerate(tasks)
  ]


def _hub_examples(spec: str, name: str, split: str, held_out: float | int) -> tuple[Any, str]:
  """Of a data set of the hub, and the part of it that they are."""
  try:
    import datasets
  except ImportError as error:
    raise UserError(f'source {spec!r} needs the datasets library: pip install datasets') from error
  path, _, config = name.partition(':')
  try:
    available = datasets.get_dataset_split_names(path, config or None)
    part = _part_of(available, split, held_out)
    return datasets.load_dataset(path, config or None, split=part), part
  except Exception as error:  # no network, no such data set, a config to choose: the library says which
    said = next(iter(str(error).splitlines()), type(error).__name__)
    raise UserError(f'source {spec!r}: could not be loaded ({said})') from error


def _hub(spec: str, name: str, split: str, held_out: float | int) -> Documents:
  examples, part = _hub_examples(spec, name, split, held_out)
  field = _text_field({key: getattr(kind, 'dtype', '') == 'string' for key, kind in examples.features.items()}, spec)
  identity = json.dumps([name, part, examples._fingerprint])
  return Documents(f'{spec} ({split})', identity, lambda: (example[field] for example in examples))
