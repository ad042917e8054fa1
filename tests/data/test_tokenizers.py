"""Tokenizers: known vectors, exact round trips, plain files."""

import io
import json
import random

import numpy as np
import pytest
import sentencepiece as library
from tokenizers import pre_tokenizers

from gpt_jax.data import assets, bpe, tokenizers
from gpt_jax.data.vocabularies import Bytes, Characters, SentencePiece
from gpt_jax.interop.pieces import sentencepiece
from gpt_jax.types import UserError

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll: 12 citizens, don't they?  They're here.\n"
TEXTS = [
  '',
  'a',
  '  lead and end  ',
  'naïve café',
  '你好，世界',
  'e\u0301 \U0001f468\u200d\U0001f469',
  TEXT,
  '\x00\x1c\u2028\r\n',
]
BROKEN = [b'\xff', b'caf\xe9 au lait', b'\xf0\x9f\x98', b'\xf0\x9f\x98\x80\x80 ok', bytes(range(256))]


@pytest.fixture(scope='module')
def small():
  return bpe.train([TEXT * 3, 'Über 你好'], 300)


@pytest.fixture(scope='module')
def pieces():
  model = io.BytesIO()
  library.SentencePieceTrainer.train(
    sentence_iterator=iter([TEXT] * 5), model_writer=model, vocab_size=296, byte_fallback=True, minloglevel=2
  )
  return SentencePiece(model.getvalue())


def test_bytes():
  tokenizer = tokenizers.tokenizer('bytes')
  assert (tokenizer.vocab_size, tokenizer.end_of_text) == (257, 256)
  assert tokenizer.encode('hé').tolist() == [104, 195, 169]
  assert tokenizer.decode_bytes([104, 256, 195]) == b'h\xc3'
  assert tokenizers.decode(tokenizer, [104, 256, 195]) == 'h\ufffd'


def test_characters_of_a_source_held_out_part_included(tmp_path):
  (tmp_path / 'a.txt').write_text('hello world' * 9 + 'xyz')
  tokenizer = tokenizers.tokenizer('chars', [f'file:{tmp_path}/a.txt'])
  assert tokenizer.characters == ' dehlorwxyz' and tokenizer.vocab_size == 11 and tokenizer.end_of_text is None
  assert tokenizer.encode('hex').tolist() == [3, 2, 8]
  for unknown in 'q', '你', '!':
    with pytest.raises(UserError, match=rf"character '{unknown}' \(U\+{ord(unknown):04X}\) is not among the 11"):
      tokenizer.encode(f'hell{unknown}')


def test_tiny_shakespeare_has_65_characters(shared):
  assert tokenizers.tokenizer('chars', [f'file:{shared}/tinyshakespeare.txt']).vocab_size == 65


def test_byte_level_keeps_every_byte(small):
  characters = Characters(
    ''.join(sorted({*''.join(TEXTS), *(chr(0xDC00 + i) for i in range(128, 256)), *map(chr, range(256)), '\U0001f600'}))
  )
  for tokenizer in small, Bytes(), characters:
    assert isinstance(tokenizer, tokenizers.Tokenizer)
    for text in TEXTS:
      assert tokenizers.decode(tokenizer, tokenizer.encode(text)) == text
    for content in BROKEN:
      ids = tokenizer.encode(content)
      assert ids.dtype == np.int32 and tokenizer.decode_bytes(ids) == content
      np.testing.assert_array_equal(ids, tokenizer.encode(content.decode('utf-8', 'surrogateescape')))
    if tokenizer is not characters:
      assert tokenizer.decode_bytes(tokenizer.encode('lone \ud83d')) == b'lone \xed\xa0\xbd'
    batch = tokenizer.encode_batch([*TEXTS, *BROKEN])
    for text, ids in zip([*TEXTS, *BROKEN], batch, strict=True):
      np.testing.assert_array_equal(ids, tokenizer.encode(text))


def test_random_bytes_round_trip(small):
  source = random.Random(0)
  for _ in range(200):
    content = source.randbytes(source.randrange(40)) + 'é你😀'.encode()[: source.randrange(10)]
    assert small.decode_bytes(small.encode(content)) == content


def test_the_byte_alphabet_is_the_librarys():
  alphabet = bpe._byte_alphabet()
  assert sorted(alphabet) == sorted(pre_tokenizers.ByteLevel.alphabet()) and sorted(alphabet.values()) == [*range(256)]
  splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  for text in TEXTS[1:]:
    ((word, _),) = splitter.pre_tokenize_str(text)
    assert bytes(alphabet[character] for character in word) == text.encode()


def test_long_texts_are_cut_where_it_does_no_harm(monkeypatch):
  source = random.Random(1)
  parts = ["don't", ' ', '  ', '    ', '\n', '\n\n', 'é', '12', '. ', 'a\n\n', '…', '你', '\t', "'ll", 'B']
  text = ''.join(source.choices(parts, k=3000))
  tokenizer = bpe.train([text], 600)  # has merges of white space, so that a wrong cut shows
  whole = tokenizer.inner.encode(text).ids
  for piece in 1, 5, 100:
    monkeypatch.setattr(bpe, '_PIECE', piece)
    assert len(list(tokenizer._pieces(text))) > 10
    assert tokenizer.encode(text).tolist() == whole


def test_a_text_never_makes_a_special_token(small):
  assert small.end_of_text == 0
  assert (
    0 not in small.encode('a<|endoftext|>b')
    and tokenizers.decode(small, small.encode('<|endoftext|>')) == '<|endoftext|>'
  )
  assert tokenizers.decode(small, [0]) == '<|endoftext|>'


def test_a_trained_bpe_is_cached_and_the_same_again(tmp_path, cache_folder, monkeypatch):
  (tmp_path / 'a.txt').write_text(TEXT * 5)
  source = f'file:{tmp_path}/a.txt'
  first = tokenizers.tokenizer('bpe:280', [source])
  assert first.vocab_size == 280 and len(first.encode(TEXT)) < len(TEXT.encode())
  monkeypatch.setattr(bpe, 'train', lambda *_: pytest.fail('trained again'))
  assert tokenizers.fingerprint(tokenizers.tokenizer('bpe:280', [source])) == tokenizers.fingerprint(first)
  (tmp_path / 'a.txt').write_text('another')
  with pytest.raises(BaseException, match='trained again'):
    tokenizers.tokenizer('bpe:280', [source])


def test_sentencepiece(pieces, tmp_path):
  (tmp_path / 'a.model').write_bytes(pieces.dump()['tokenizer.model'])
  again = tokenizers.tokenizer(f'sentencepiece:{tmp_path}/a.model')
  assert (again.vocab_size, again.end_of_text) == (296, 2)
  for text in 'hear me speak.', 'café 你':
    assert tokenizers.decode(again, again.encode(text)) == text
  assert tokenizers.decode(again, again.encode(b'speak \xff me')) == 'speak me'  # its normalisation drops U+FFFD


def test_saved_and_loaded(small, pieces, tmp_path):
  for number, tokenizer in enumerate([small, pieces, Bytes(), Characters('\n aé你')]):
    folder = tmp_path / str(number)
    tokenizers.save(tokenizer, folder)
    assert {path.name for path in folder.iterdir()} == set(tokenizer.dump())
    loaded = tokenizers.load(folder)
    assert (loaded.vocab_size, loaded.end_of_text) == (tokenizer.vocab_size, tokenizer.end_of_text)
    np.testing.assert_array_equal(loaded.encode('aé 你\n'), tokenizer.encode('aé 你\n'))
    assert tokenizers.fingerprint(loaded) == tokenizers.fingerprint(tokenizer)
  assert len({tokenizers.fingerprint(t) for t in [small, pieces, Bytes(), Characters('a'), Characters('b')]}) == 5


@pytest.fixture(scope='module')
def spaced():
  """As LLaMA's: a piece for each byte, and a space before each text."""
  names = ['<unk>', '<s>', *(f'<0x{byte:02X}>' for byte in range(256)), '▁', 'a', '▁a']
  inner = sentencepiece(
    {name: number for number, name in enumerate(names)}, {'▁a': 0.0, '▁': -1.0, 'a': -2.0}, '<unk>', True
  )
  inner.add_special_tokens(['<s>'])
  return bpe.Subwords(inner)


def test_pieces_that_are_bytes_are_those_bytes(spaced):
  face = [2 + byte for byte in '😀'.encode()]
  assert spaced.encode('a😀 a').tolist() == [260, *face, 260]
  for text in [*TEXTS, ' a', '  ', '<s>', '<0x41>']:
    assert spaced.decode_bytes(spaced.encode(text)) == text.encode()
  assert spaced.decode_bytes(face[:2]) == b'\xf0\x9f' and spaced.decode_bytes([260, 260]) == b'a a'
  assert spaced.decode_bytes([1, 260]) == b'<s> a'
  assert list(tokenizers.stream(spaced, [260, *face, 258, 260])) == ['a', '😀', ' ', ' a']
  for ids in [1, 260, 258, 259], face, [258, *face, 260, 260]:  # where the library can say it, it says the same
    assert spaced.decode_bytes(ids).decode() == spaced.inner.decode(ids, skip_special_tokens=False)


def test_an_added_token_is_its_name(small):
  inner = type(small.inner).from_str(small.dump()['tokenizer.json'].decode())
  inner.add_tokens(['£é'])
  tokenizer = bpe.Subwords(inner)
  assert tokenizer.encode('a£é').tolist()[-1] == small.vocab_size
  assert tokenizer.decode_bytes(tokenizer.encode('a£éb')) == 'a£éb'.encode()


def test_a_stream_shows_whole_characters(small, pieces):
  assert list(tokenizers.stream(small, small.encode('x😀'))) == ['x', '😀']
  source = random.Random(2)
  for tokenizer in small, pieces:
    for _ in range(20):
      ids = [source.randrange(3, 296) for _ in range(30)]
      assert ''.join(tokenizers.stream(tokenizer, ids)) == tokenizers.decode(tokenizer, ids)


def test_bad_ones_say_so(tmp_path):
  (tmp_path / 'bad.json').write_text('{"model": ')
  (tmp_path / 'encoder_bpe_40000.json').write_text('{}')
  (tmp_path / 'vocab_40000.bpe').write_text('#version\none two three')
  for spec, message in [
    ('byte', "did you mean 'bytes'"),
    ('nonsense', 'known: bytes, chars'),
    ('bpe:many', 'bpe needs a vocabulary size'),
    ('bpe:100', 'at least 257'),
    ('chars', 'have no text'),
    ('json:/nowhere', 'there is no file /nowhere'),
    (f'json:{tmp_path}/bad.json', 'bad.json: not a tokenizer.json'),
    (f'sentencepiece:{tmp_path}/bad.json', 'bad.json: not a SentencePiece model'),
    ('gpt1:/nowhere', 'there is no file /nowhere'),
    (f'gpt1:{tmp_path}', 'vocab_40000.bpe: not a BPE vocabulary'),
  ]:
    with pytest.raises(UserError, match=message) as caught:
      tokenizers.tokenizer(spec)
    assert '\n' not in str(caught.value)
  with pytest.raises(UserError, match=r'here/tokenizer.json: not a tokenizer.json'):
    tokenizers.read({'tokenizer.json': b'[]'}, 'here')
  with pytest.raises(UserError, match=r'has no tokenizer.json'):
    tokenizers.load(tmp_path / 'empty')


def test_gpt1(shared):
  """Numbers of transformers' OpenAIGPTTokenizer (4.46, without spaCy) for the ASCII lines."""
  tokenizer = tokenizers.tokenizer(f'gpt1:{shared}/gpt1')
  assert (tokenizer.vocab_size, tokenizer.end_of_text) == (40478, None)
  assert tokenizer.encode('The').tolist() == [481]
  assert tokenizer.encode('Hello, world!').tolist() == [3570, 240, 1276, 267]
  assert tokenizer.encode('"don\'t"').tolist() == [244, 2310, 256, 241, 244]
  assert (
    tokenizers.decode(tokenizer, tokenizer.encode('Hello,  World!\n\n A – Café…'))
    == 'hello , world ! \n a - café . . .'
  )
  assert tokenizer.encode('a \n\n b\n').tolist() == tokenizer.encode('a\nb').tolist()
  assert tokenizer.encode('😀').tolist() == [0] and tokenizer.encode(b'\xff').tolist() != []


def test_gpt1_round_trips_its_normal_form(shared):
  tokenizer = tokenizers.tokenizer(f'gpt1:{shared}/gpt1')
  text = (shared / 'tinyshakespeare.txt').read_text()[:20000]
  ids = tokenizer.encode(text)
  normal = tokenizers.decode(tokenizer, ids)
  assert 0 not in ids
  np.testing.assert_array_equal(tokenizer.encode(normal), ids)
  assert ''.join(tokenizers.stream(tokenizer, ids[:200])) == tokenizers.decode(tokenizer, ids[:200])


@pytest.mark.assets
def test_gpt2():
  tokenizer = tokenizers.tokenizer('gpt2')
  assert (tokenizer.vocab_size, tokenizer.end_of_text) == (50257, 50256)
  expected = [15496, 995, 0, 770, 318, 402, 11571, 12, 17, 13]
  assert tokenizer.encode('Hello world! This is GPT-2.').tolist() == expected
  for text in [*TEXTS, *BROKEN]:
    content = text if isinstance(text, bytes) else text.encode()
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == content


@pytest.mark.assets
def test_gpt2_on_the_vectors_of_llama_cpp():
  (path,) = assets.asset('tokenizer_vectors').rglob('ggml-vocab-gpt-2.gguf.inp')
  texts = path.read_text('utf-8').split('\n__ggml_vocab_test__\n')
  numbers = path.with_suffix('.out').read_text().split('\n')
  assert len(texts) == 47
  tokenizer = tokenizers.tokenizer('gpt2')
  for text, line in zip(texts, numbers, strict=True):
    assert tokenizer.encode(text).tolist() == [int(number) for number in line.split()]


def test_any_tokenizer_json(small, tmp_path):
  (tmp_path / 'tokenizer.json').write_bytes(small.dump()['tokenizer.json'])
  loaded = tokenizers.tokenizer(f'json:{tmp_path}/tokenizer.json')
  assert json.loads(loaded.dump()['tokenizer.json']) == json.loads(small.dump()['tokenizer.json'])
  assert loaded.encode(TEXT).tolist() == small.encode(TEXT).tolist()
