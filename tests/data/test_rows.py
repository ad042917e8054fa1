"""Rows: tokenised once, every token predicted once, documents apart or together."""

import random

import numpy as np
import pytest

from gpt_jax.data import rows as rows_module
from gpt_jax.data.rows import Rows, Stream, head, in_order, slice_of_host, tokenize
from gpt_jax.data.sources import Documents
from gpt_jax.data.vocabularies import Bytes, Characters
from gpt_jax.types import UserError


def texts(*documents, identity='1'):
  return Documents('test', identity, lambda: iter(documents))


def random_stream(seed):
  """Documents of numbers that are all different, so that a token says which it is; some are empty."""
  source = np.random.default_rng(seed)
  lengths = source.integers(0, 9, size=source.integers(1, 12))
  lengths[0] += 2
  starts = np.cumsum([0, *lengths[:-1]])
  return Stream('random', np.arange(1, lengths.sum() + 1, dtype=np.uint16), starts, 1), lengths


def test_a_stream_is_the_documents_with_the_end_of_text_after_each(cache_folder):
  stream = tokenize(texts('ab', '', 'é', b'\xff'.decode('utf-8', 'surrogateescape')), Bytes())
  assert stream.tokens.tolist() == [97, 98, 256, 256, 195, 169, 256, 255, 256]
  assert stream.starts.tolist() == [0, 3, 4, 7] and stream.num_bytes == 5
  assert isinstance(stream.tokens, np.memmap) and stream.tokens.dtype == np.uint16
  joined = tokenize(texts('ab', 'a'), Characters('ab'))
  assert joined.tokens.tolist() == [0, 1, 0] and joined.starts.tolist() == [0, 2]


def test_large_vocabularies_need_four_bytes():
  characters = Characters(''.join(map(chr, range(0x10000, 0x20001))))
  assert tokenize(texts(chr(0x20000)), characters).tokens.tolist() == [65536]


def test_tokenizes_once_and_again_when_anything_changes(cache_folder, monkeypatch):
  written = []
  write = rows_module._write
  monkeypatch.setattr(rows_module, '_write', lambda *arguments: written.append(1) or write(*arguments))
  for _ in range(2):
    assert tokenize(texts('abc'), Bytes()).tokens.tolist() == [97, 98, 99, 256]
  assert len(written) == 1
  tokenize(texts('abc'), Characters('abc'))
  tokenize(texts('abc'), Characters('abcd'))
  tokenize(texts('abc', identity='2'), Bytes())
  assert len(written) == 4
  monkeypatch.setattr(rows_module, '_CHUNK', 2)
  many = texts('abc', 'd', 'e', 'f', identity='3')
  assert len(tokenize(many, Bytes()).starts) == 4


def test_an_interrupted_run_leaves_nothing(cache_folder):
  def broken():
    yield 'abc'
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    tokenize(Documents('test', '1', broken), Bytes())
  assert not list((cache_folder / 'streams').iterdir())


def test_a_damaged_stream_says_so(cache_folder):
  tokenize(texts('abc'), Bytes())
  (path,) = cache_folder.rglob('tokens.bin')
  path.write_bytes(b'123')
  with pytest.raises(UserError, match='is damaged; delete it'):
    tokenize(texts('abc'), Bytes())


@pytest.mark.parametrize('seed', range(20))
def test_every_token_is_predicted_exactly_once(seed):
  stream, _ = random_stream(seed)
  for context in 1, 3, 4, 64:
    rows = Rows(stream, context, drop_remainder=False)
    predicted = []
    for batch in in_order(rows, 3):
      assert batch['tokens'].shape == batch['weights'].shape == (3, context + 1) and set(batch) == {'tokens', 'weights'}
      inputs, targets = batch['tokens'][:, :-1], batch['tokens'][:, 1:]
      counted = batch['weights'][:, 1:] == 1
      assert (targets[counted] == inputs[counted] + 1).all()  # predicted from the token before it
      predicted += targets[counted].tolist()
      assert batch['weights'].sum() == counted.sum()
    assert predicted == stream.tokens[1:].tolist()


def test_training_drops_what_fills_no_row():
  stream = Stream('ten', np.arange(10, dtype=np.uint16), np.array([0]), 10)
  assert [len(Rows(stream, context)) for context in (1, 3, 4, 5, 9)] == [9, 3, 2, 1, 1]
  assert [len(Rows(stream, context, drop_remainder=False)) for context in (1, 3, 4, 5, 10)] == [9, 3, 3, 2, 1]
  assert Rows(stream, 4).batch(np.array([1, 0]))['tokens'].tolist() == [[4, 5, 6, 7, 8], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize('seed', range(20))
def test_separate_documents_against_brute_force(seed):
  stream, lengths = random_stream(seed)
  owner = [document for document, length in enumerate(lengths) for _ in range(length)]
  context = random.Random(seed).choice([1, 4, 7])
  rows = Rows(stream, context, separate_documents=True, drop_remainder=False)
  batch = rows.batch(np.array([*range(len(rows)), -1]))
  layout = batch['layout']
  for row in range(len(rows)):
    segment, position = 0, 0
    for column in range(context + 1):
      place = row * context + column
      if place >= len(owner):
        assert layout.segment[row, column] == batch['weights'][row, column] == 0
        continue
      is_new = column == 0 or owner[place] != owner[place - 1]
      segment, position = (segment + 1, 0) if is_new else (segment, position + 1)
      assert layout.segment[row, column] == segment and layout.position[row, column] == position
      assert layout.order[row, column] == column
      assert batch['weights'][row, column] == (not is_new)
  assert not batch['weights'][-1].any() and not layout.segment[-1].any()
  assert not layout.block.any() and not layout.prefix.any()


def test_too_little_text_says_so():
  stream = Stream('file:a.txt (train)', np.arange(5, dtype=np.uint16), np.array([0]), 5)
  with pytest.raises(UserError, match=r'source file:a.txt \(train\): 5 tokens found, at least 9 needed'):
    Rows(stream, 8)
  assert len(Rows(stream, 8, drop_remainder=False)) == 1
  for tokens in stream.tokens[:0], stream.tokens[:1]:
    with pytest.raises(UserError, match='at least 2 needed'):
      Rows(Stream('a', tokens, np.array([0]), 0), 8, drop_remainder=False)


def test_an_empty_source_says_so():
  with pytest.raises(UserError, match='source test: 0 tokens found'):
    Rows(tokenize(texts(), Characters('a')), 4)


@pytest.mark.parametrize('hosts', [2, 4])
def test_hosts_share_an_evaluation(hosts):
  rows = Rows(Stream('a', np.arange(100, dtype=np.uint16), np.array([0]), 100), 3, drop_remainder=False)
  alone = list(in_order(rows, 4))
  together = list(zip(*(in_order(rows, 4, host, hosts) for host in range(hosts)), strict=True))
  assert len(alone) == len(together) == 9
  for whole, parts in zip(alone, together, strict=True):
    np.testing.assert_array_equal(whole['tokens'], np.concatenate([part['tokens'] for part in parts]))
  with pytest.raises(UserError, match='batch_size 5 does not divide by the number of hosts, 2'):
    slice_of_host(np.arange(5), 0, 2)


def test_the_head_of_a_stream_is_its_first_tokens_and_their_bytes(cache_folder):
  stream = tokenize(texts('ab', 'é', 'cd'), Bytes())  # 97 98 end 195 169 end 99 100 end
  first = head(stream, 5, Bytes())
  assert first.tokens.tolist() == stream.tokens[:5].tolist()
  assert first.starts.tolist() == [0, 3]
  assert first.num_bytes == 4, 'ends of text are no bytes'
  assert head(stream, 9, Bytes()) is stream


@pytest.mark.parametrize('length', [2, 9, 10, 14, 31])
@pytest.mark.parametrize(('context', 'stride'), [(9, 9), (9, 4), (9, 1), (3, 2)])
@pytest.mark.parametrize('begin', [(), (77, 78)])
def test_sliding_rows_predict_every_token_once_from_as_much_as_they_may(length, context, stride, begin):
  """Against a loop over the tokens: each is predicted in the first row that reaches it."""
  stream = Stream('here', np.arange(length, dtype=np.uint16), np.array([0]), length)
  rows = Rows(stream, context, drop_remainder=False, stride=stride, begin=begin)
  batch = rows.batch(np.arange(-1, len(rows)))
  assert batch['tokens'].shape == batch['weights'].shape == (len(rows) + 1, len(begin) + context + 1)
  assert not batch['weights'][0].any()
  found = {}
  for tokens, weights in zip(batch['tokens'][1:], batch['weights'][1:], strict=True):
    assert tokens[: len(begin)].tolist() == list(begin) and weights[0] == 0
    for place in np.flatnonzero(weights):
      assert int(tokens[place]) not in found
      found[int(tokens[place])] = int(place) - len(begin)
  assert sorted(found) == list(range(0 if begin else 1, length))
  for token, seen in found.items():
    assert seen == token if token <= context else context - stride < seen <= context


def test_a_stride_is_no_longer_than_the_context():
  stream = Stream('here', np.arange(9, dtype=np.uint16), np.array([0]), 9)
  for stride in (0, 6):
    with pytest.raises(UserError, match=f'stride = {stride} must be from 1 to the context, 5'):
      Rows(stream, 5, stride=stride)
