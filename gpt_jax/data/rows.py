"""Rows of equal length, cut from a stream of tokens that is written once and memory-mapped."""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import json
import pathlib
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Int, Integer
import numpy as np
from tqdm import tqdm

from gpt_jax import cache
from gpt_jax.data.sources import Documents
from gpt_jax.data.text import to_bytes
from gpt_jax.data.tokenizers import Tokenizer, fingerprint
from gpt_jax.types import Batch, Layout, UserError

_FORMAT = 1
"""Part of every fingerprint: a change of what is written below makes old files unread."""

_CHUNK = 1 << 20
"""Characters tokenised at once."""


@dataclasses.dataclass(frozen=True)
class Stream:
  """The documents of a source as one stream of tokens, the end of text after each (where the vocabulary has one)."""

  name: str
  tokens: Integer[np.ndarray, 'stream']
  starts: Int[np.ndarray, 'documents']
  """Where each document begins, in order; an empty one begins where the next does."""
  num_bytes: int
  """UTF-8 bytes of the text, ends of text not counted: what bits per byte divides by."""


def tokenize(texts: Documents, tokenizer: Tokenizer) -> Stream:
  """The stream of a source, tokenised once and then memory-mapped from the cache.

  Its folder's name is a fingerprint of the texts' identity, the tokenizer and the format.
  """
  key = json.dumps([_FORMAT, texts.name, texts.identity, fingerprint(tokenizer)])
  folder = cache.folder() / 'streams' / hashlib.sha256(key.encode()).hexdigest()[:32]
  if not folder.is_dir():
    with cache.building(folder) as partial:
      _write(texts, tokenizer, partial)
  facts = json.loads((folder / 'stream.json').read_text())
  path = folder / 'tokens.bin'
  if path.stat().st_size != facts['num_tokens'] * np.dtype(facts['dtype']).itemsize:
    raise UserError(f'{folder} is damaged; delete it, and it will be made again')
  tokens = np.memmap(path, facts['dtype'], 'r') if facts['num_tokens'] else np.zeros(0, facts['dtype'])
  return Stream(texts.name, tokens, np.load(folder / 'starts.npy'), facts['num_bytes'])


def head(stream: Stream, num_tokens: int, tokenizer: Tokenizer) -> Stream:
  """The first tokens of a stream as a stream: an evaluation large enough need not be larger.

  Its bytes are those that the tokens stand for, which a tokenizer that loses some of a text does not know exactly.
  """
  if len(stream.tokens) <= num_tokens:
    return stream
  tokens = stream.tokens[:num_tokens]
  ids = tokens if tokenizer.end_of_text is None else tokens[tokens != tokenizer.end_of_text]
  starts = stream.starts[stream.starts < num_tokens]
  return Stream(stream.name, tokens, starts, len(tokenizer.decode_bytes(ids.tolist())))


def _write(texts: Documents, tokenizer: Tokenizer, folder: pathlib.Path) -> None:
  dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
  end = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
  starts: list[int] = []
  num_tokens = num_bytes = 0
  with (
    (folder / 'tokens.bin').open('wb') as file,
    tqdm(desc=f'tokenize {texts.name}', unit='B', unit_scale=True, disable=None, leave=False) as bar,
  ):
    for chunk in _chunks(texts):
      for text, ids in zip(chunk, tokenizer.encode_batch(chunk), strict=True):
        starts.append(num_tokens)
        file.write(np.concatenate([ids, end]).astype(dtype).tobytes())
        num_tokens += len(ids) + len(end)
        size = len(to_bytes(text))
        num_bytes += size
        bar.update(size)
  np.save(folder / 'starts.npy', np.array(starts, np.int64))
  facts = {'name': texts.name, 'dtype': dtype.name, 'num_tokens': num_tokens, 'num_bytes': num_bytes}
  (folder / 'stream.json').write_text(json.dumps(facts))


def _chunks(texts: Documents) -> Iterator[list[str]]:
  chunk: list[str] = []
  size = 0
  for text in texts:
    chunk.append(text)
    size += len(text)
    if size >= _CHUNK:
      yield chunk
      chunk, size = [], 0
  if chunk:
    yield chunk


@runtime_checkable
class Dataset(Protocol):
  """Rows of one length by number: `Rows`, or answers to prompts."""

  @property
  def context(self) -> int:
    """Tokens that a row is read for: it holds one more."""
    ...

  @property
  def separate_documents(self) -> bool:
    """Whether batches have a layout."""
    ...

  def __len__(self) -> int: ...

  def batch(self, indices: Integer[np.ndarray, 'B'], step: int = 0) -> Batch:
    """tokens and weights [B, context + 1], and a layout or none; -1 gives a row of padding.

    `step`, of training, is what a row is drawn by that is another each time.
    """
    ...


def one_text(real: Bool[np.ndarray, '*B T']) -> Layout:
  """The layout of rows that hold one text each, `real` where it stands and padding behind it."""
  return texts_apart(np.where(real, np.arange(real.shape[-1]), 0), real.astype(np.int32))


def texts_apart(position: Integer[np.ndarray, '*B T'], segment: Integer[np.ndarray, '*B T']) -> Layout:
  """The layout of rows of texts that are read left to right and do not see one another."""
  order = np.broadcast_to(np.arange(segment.shape[-1], dtype=np.int32), segment.shape)
  zeros = np.zeros_like(order)
  return Layout(order, position.astype(np.int32), zeros, segment.astype(np.int32), zeros.astype(bool))


class Rows:
  """Row i holds the tokens i S to i S + T of a stream, both included, T the context and S the stride.

  With S = T, neighbours share one token, the last target of one and the first input of the next: the objective reads
  tokens[:, :-1] and predicts tokens[:, 1:]. With a smaller stride they share more, which the later row only reads: so
  every token but the stream's first is predicted exactly once, from at least T - S tokens before it where there are.

  Args:
    stream: of which source.
    context: T, in tokens.
    separate_documents: documents of a row don't see each other: a layout is added in which each has its own segment
      and positions from 0, and the first token of a document, which nothing predicts, has weight 0. Otherwise a row
      is plain text, read over the ends of text (GPT-3, section 2.2).
    drop_remainder: leave out the last tokens that don't fill a row (training) or pad them (evaluation).
    stride: S, at most T; None: T.
    begin: tokens that stand before every row besides, for a model that knows no text without them (LLaMA's <s>); from
      them the stream's first token is predicted too.

  Raises:
    UserError: fewer tokens than one row, or a stride that is none.
  """

  def __init__(
    self,
    stream: Stream,
    context: int,
    separate_documents: bool = False,
    drop_remainder: bool = True,
    stride: int | None = None,
    begin: Sequence[int] = (),
  ):
    self.stream = stream
    self.context = context
    self.stride = context if stride is None else stride
    self.separate_documents = separate_documents
    self.begin = np.array(begin, np.int32)
    if not 1 <= self.stride <= context:
      raise UserError(f'stride = {stride} must be from 1 to the context, {context}')
    if separate_documents and len(begin):
      raise UserError(
        'documents that do not see each other would each need the tokens that begin a text: not supported'
      )
    needed = context + 1 if drop_remainder else 2
    if len(stream.tokens) < needed:
      raise UserError(
        f'source {stream.name}: {len(stream.tokens)} tokens found, at least {needed} needed for one row of context '
        f'{context}; give it more text or take a shorter context'
      )
    beyond = max(len(stream.tokens) - 1 - context, 0)  # the first row
    self._length = 1 + (beyond // self.stride if drop_remainder else -(-beyond // self.stride))

  def __len__(self) -> int:
    return self._length

  def batch(self, indices: Integer[np.ndarray, 'B'], step: int = 0) -> Batch:
    """tokens and weights [B, T + 1], what begins a row before them, and the layout if documents are separate.

    weights[:, 0] is 0, as no row predicts its first token: the sum of weights is the number of predictions. An index of
    -1 gives a row of padding.
    """
    del step
    indices = indices[:, None].astype(np.int64)
    places = indices * self.stride + np.arange(self.context + 1)
    real = (indices >= 0) & (places < len(self.stream.tokens))
    tokens = np.where(real, self.stream.tokens[np.where(real, places, 0)], 0).astype(np.int32)
    # What the row before reached, it predicted; the stream's first token follows from `begin` or from nothing.
    predicted = np.where(
      indices > 0, places > (indices - 1) * self.stride + self.context, places >= 1 - len(self.begin)
    )
    weights = (real & predicted).astype(np.float32)
    if not self.separate_documents:
      begin = np.broadcast_to(self.begin, (len(indices), len(self.begin)))
      return {'tokens': np.hstack([begin, tokens]), 'weights': np.hstack([np.zeros_like(begin, np.float32), weights])}
    document = np.searchsorted(self.stream.starts, places, 'right') - 1
    start = np.maximum(self.stream.starts[document], places[:, :1])
    # Numbered along the row, since empty documents have numbers of their own in the stream.
    segment = 1 + np.cumsum(np.diff(document, axis=1, prepend=document[:, :1]) > 0, axis=1)
    layout = texts_apart(np.where(real, places - start, 0), np.where(real, segment, 0))
    weights[places == self.stream.starts[document]] = 0
    return {'tokens': tokens, 'weights': weights, 'layout': layout}


def in_order(rows: Dataset, size: int, host: int = 0, hosts: int = 1) -> Iterator[Batch]:
  """Every row once, in batches of `size` of which this host gets its slice; the last is filled up with padding."""
  for start in range(0, len(rows), size):
    indices = np.arange(start, start + size)
    yield rows.batch(slice_of_host(np.where(indices < len(rows), indices, -1), host, hosts))


def slice_of_host(indices: Integer[np.ndarray, 'batch'], host: int, hosts: int) -> Integer[np.ndarray, 'slice']:
  """This host's contiguous part of a global batch: the parts in order are the batch."""
  if len(indices) % hosts:
    raise UserError(f'batch_size {len(indices)} does not divide by the number of hosts, {hosts}')
  size = len(indices) // hosts
  return indices[host * size : (host + 1) * size]
