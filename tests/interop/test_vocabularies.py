"""Vocabularies of GGUF files: small ones worked by hand, broken ones, and llama.cpp's own vectors."""

import json

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from gpt_jax.data import assets, bpe
from gpt_jax.interop.splitters import SPLITTERS
from gpt_jax.interop.vocabularies import read_vocabulary, write_vocabulary
from gpt_jax.types import UserError
from tests.interop.gguf_metadata import metadata as head

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
FACE = [240, 159, 152, 128]  # the bytes of 😀

VECTORS = (
  'gpt-2',
  'llama-spm',
  'llama-bpe',
  'phi-3',
  'falcon',
  'mpt',
  'starcoder',
  'refact',
  'command-r',
  'qwen2',
  'qwen35',
)


def words(pre: str | None = 'gpt-2', **changed):
  """A byte-level vocabulary: 0 control, 1 user defined, 2 and on letters, then what merges make."""
  tokens = ['<|end|>', '<pad>', 'a', 'b', '1', '2', 'Ġ', '<', '|', '>', 'e', 'n', 'd', 'ab', 'Ġa', '12', 'Ġab']
  kinds = [CONTROL, USER_DEFINED] + [NORMAL] * 15
  return of(
    model='gpt2', pre=pre, tokens=tokens, token_type=kinds, merges=['a b', 'Ġ a', '1 2'], eos_token_id=0, **changed
  )


def pieces(scores: dict[str, float], **changed):
  """A SentencePiece vocabulary: <unk>, <s>, </s>, then these pieces, then the bytes."""
  tokens = ['<unk>', '<s>', '</s>', *scores, *(f'<0x{byte:02X}>' for byte in range(256))]
  kinds = [UNKNOWN, CONTROL, CONTROL] + [NORMAL] * len(scores) + [BYTE] * 256
  return of(
    model='llama', tokens=tokens, token_type=kinds, scores=[0.0] * 3 + [*scores.values()] + [0.0] * 256, **changed
  )


def of(**fields):
  return {f'tokenizer.ggml.{field}': value for field, value in fields.items() if value is not None}


def tokens_of(metadata, text: str) -> list[str]:
  """Their names."""
  files = read_vocabulary(metadata)
  tokenizer = bpe.from_json(files['tokenizer.json'], 'tokenizer.json')
  ids = tokenizer.encode(text).tolist()
  again = bpe.from_json(read_vocabulary(write_vocabulary(files))['tokenizer.json'], 'again')
  assert again.encode(text).tolist() == ids
  if metadata['tokenizer.ggml.model'] == 'llama':
    assert tokenizer.decode_bytes(ids) == text.encode()
  return [metadata['tokenizer.ggml.tokens'][number] for number in ids]


def test_pieces_merge_by_score():
  letters = {'▁': -9.0, 'a': -9.0, 'b': -9.0, 'c': -9.0}
  assert tokens_of(pieces({**letters, 'ab': -1.0, 'bc': -2.0}), 'abc') == ['▁', 'ab', 'c']
  assert tokens_of(pieces({**letters, 'ab': -2.0, 'bc': -1.0}), 'abc') == ['▁', 'a', 'bc']
  assert tokens_of(pieces({**letters, 'ab': -2.0, 'bc': -1.0, 'abc': -3.0}), 'abc abc') == ['▁', 'abc', '▁', 'abc']
  assert tokens_of(pieces({**letters, '▁a': -1.0, '▁▁': -2.0, '▁▁a': -3.0}), '  a') == ['▁▁', '▁a']
  assert tokens_of(pieces({**letters, 'aa': -1.0, 'aaa': -2.0}), 'aaaaa') == ['▁', 'aa', 'aaa']  # aa aa a: the last two
  assert tokens_of(pieces({**letters, 'aa': -1.0, 'aaa': -1.0}), 'aaaaa') == ['▁', 'aa', 'aaa']


def test_what_no_piece_says_is_bytes():
  vocabulary = pieces({'▁': -1.0, 'a': -2.0})
  assert tokens_of(vocabulary, 'a😀') == ['▁', 'a', *(f'<0x{byte:02X}>' for byte in FACE)]
  assert tokens_of(vocabulary, '') == [] and tokens_of(vocabulary, '\n') == ['▁', '<0x0A>']
  assert tokens_of(vocabulary, '<0x41>')[1] == '<0x3C>'  # the name of a byte is text too


def test_the_space_before_a_text():
  letters = {'▁': -2.0, 'a': -3.0, '▁a': -1.0}
  assert tokens_of(pieces(letters), 'a a') == ['▁a', '▁a']
  assert tokens_of(pieces(letters, add_space_prefix=False), 'a a') == ['a', '▁a']
  assert tokens_of(pieces(letters, add_space_prefix=False), ' a') == ['▁a']


def test_a_splitter_keeps_merges_within_its_words():
  assert tokens_of(words(), 'ab ab a12') == ['ab', 'Ġ', 'ab', 'Ġa', '12']
  assert tokens_of(words('smollm'), 'ab ab a12') == ['ab', 'Ġ', 'ab', 'Ġa', '1', '2']
  assert tokens_of(words('llama-bpe'), 'ab ab 12') == ['ab', 'Ġab', 'Ġ', '12']  # a word that is a token
  for pre in (None, 'default'):
    assert tokens_of(words(pre), ' 12') == ['Ġ', '12']
  text = "It's `12345 !  b"
  parted = {
    'gpt-2': ['It', "'s", 'Ġ`', '12345', 'Ġ!', 'Ġ', 'Ġb'],
    'smollm': ['It', "'s", 'Ġ`', '1', '2', '3', '4', '5', 'Ġ!', 'Ġ', 'Ġb'],
    'llama-bpe': ['It', "'s", 'Ġ`', '123', '45', 'Ġ!', 'Ġ', 'Ġb'],
    'qwen2': ['It', "'s", 'Ġ`', '1', '2', '3', '4', '5', 'Ġ!', 'Ġ', 'Ġb'],
    'falcon': ['It', "'", 's', 'Ġ', '`', '123', '45', 'Ġ', '!', 'Ġ', 'Ġb'],
    'default': ['It', "'", 's', 'Ġ`', '123', '45', 'Ġ', '!', 'Ġ', 'Ġb'],
  }
  for name, expected in parted.items():
    assert [word for word, _ in SPLITTERS[name].parts.pre_tokenize_str(text)] == expected, name


def test_control_tokens_are_special_and_user_defined_ones_are_not():
  vocabulary = words()
  assert tokens_of(vocabulary, 'a<|end|><pad>') == ['a', '<', '|', 'e', 'n', 'd', '|', '>', '<pad>']
  inner = tokenizers.Tokenizer.from_str(read_vocabulary(vocabulary)['tokenizer.json'].decode())
  assert inner.encode('a<|end|><pad>').ids == [2, 0, 1]
  assert {token.content: token.special for token in inner.get_added_tokens_decoder().values()} == {
    '<|end|>': True, '<pad>': False
  }  # fmt: skip
  named = pieces({'▁': -1.0, '<': -2.0, '/': -2.0, 's': -2.0, '>': -2.0, '</': -3.0, 's>': -3.0})
  assert tokens_of(named, '</s>') == ['▁', '</', 's>']  # no merge makes a control token


@pytest.mark.parametrize(
  ('vocabulary', 'before', 'behind'),
  [
    (words(), [], []),
    (words(bos_token_id=0), [], []),
    (words(bos_token_id=0, add_bos_token=True), [0], []),
    (words('llama-bpe', bos_token_id=0), [0], []),
    (words('llama-bpe', bos_token_id=0, add_bos_token=False, add_eos_token=True), [], [0]),
    (words('llama-bpe'), [], []),
    (pieces({'a': -1.0}), [1], []),
    (pieces({'a': -1.0}, add_bos_token=False), [], []),
    (pieces({'a': -1.0}, bos_token_id=3, add_eos_token=True), [3], [2]),
  ],
)
def test_a_text_begins_with_the_bos_where_llama_cpp_puts_one(vocabulary, before, behind):
  files = read_vocabulary(vocabulary)
  for kept in files, read_vocabulary(write_vocabulary(files)):
    inner = tokenizers.Tokenizer.from_str(kept['tokenizer.json'].decode())
    text = inner.encode('a', add_special_tokens=False).ids
    assert inner.encode('a').ids == [*before, *text, *behind]
    assert inner.encode('a', 'a').ids == [*before, *text, *behind] * 2
    config = json.loads(kept['tokenizer_config.json'])
    assert (config['add_bos_token'], config['add_eos_token']) == (bool(before), bool(behind))


def test_what_comes_with_a_tokenizer():
  vocabulary = pieces({'a': -1.0, '<|eot|>': 0.0, '<|eom|>': 0.0}, padding_token_id=0, eot_token_id=4, eom_token_id=5)
  vocabulary['tokenizer.ggml.token_type'][4:6] = [CONTROL] * 2
  vocabulary |= {'general.architecture': b'llama', 'llama.context_length': 64}
  vocabulary['tokenizer.chat_template'] = b'{{ bos_token }}\xe2\x80\xa6'
  files = read_vocabulary(vocabulary)
  assert sorted(files) == ['chat_template.jinja', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json']
  assert files['chat_template.jinja'].decode() == '{{ bos_token }}…'
  assert json.loads(files['tokenizer_config.json']) == {
    'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>',
    'pad_token': '<unk>', 'add_bos_token': True, 'add_eos_token': False, 'clean_up_tokenization_spaces': False,
    'model_max_length': 64,
  }  # fmt: skip
  assert json.loads(files['generation_config.json']) == {
    'bos_token_id': 1,
    'eos_token_id': [2, 4, 5],
    'pad_token_id': 0,
  }
  written = write_vocabulary(files)
  assert written.pop('tokenizer.ggml.add_space_prefix') and not written.pop('tokenizer.ggml.add_eos_token')
  assert written.pop('tokenizer.ggml.add_bos_token') and written.pop('tokenizer.ggml.pre') == 'default'
  assert [written.pop(f'tokenizer.ggml.{word}_token_id') for word in ('bos', 'eos', 'unknown')] == [1, 2, 0]
  assert written.pop('tokenizer.chat_template') == '{{ bos_token }}…'
  written.pop('tokenizer.ggml.scores')
  assert written == {key: vocabulary[key] for key in written} and len(written) == 6


def test_without_a_tokenizer_there_is_nothing_to_say():
  assert read_vocabulary({'general.architecture': 'llama', 'llama.context_length': 64}) == {}
  assert write_vocabulary({}) == of(model='none')
  assert read_vocabulary(of(model='none')) == read_vocabulary(of(model='no_vocab')) == {}
  assert read_vocabulary({'tokenizer.chat_template': 'x'}) == {'chat_template.jinja': b'x'}


def test_text_may_be_bytes_and_empty_tokens_have_a_name():
  vocabulary = words()
  coded = {
    key: [entry.encode() if isinstance(entry, str) else entry for entry in value] if isinstance(value, list) else value
    for key, value in vocabulary.items()
  }
  assert read_vocabulary(coded) == read_vocabulary(vocabulary)
  vocabulary['tokenizer.ggml.tokens'][7] = ''
  assert '[EMPTY_7]' in json.loads(read_vocabulary(vocabulary)['tokenizer.json'])['model']['vocab']


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'model': None}, 'tokenizer.ggml.model is missing'),
    ({'model': 'bert'}, "tokenizer.ggml.model = 'bert' can not be read; what can: byte-level BPE parted as gpt-2"),
    ({'model': 3}, 'tokenizer.ggml.model = 3 is not text'),
    ({'pre': 'tekken'}, "tokenizer.ggml.pre = 'tekken' can not be read; what can: byte-level BPE parted as gpt-2, mpt"),
    ({'tokens': None}, 'tokenizer.ggml.tokens is missing; the file is broken: convert the model again'),
    ({'tokens': []}, 'tokenizer.ggml.tokens is empty'),
    ({'tokens': 'abc'}, 'tokenizer.ggml.tokens is not a list'),
    ({'tokens': ['a', 7]}, r'tokenizer.ggml.tokens\[1\] = 7 is not text'),
    ({'tokens': [b'a\n', b'\xff']}, r"tokenizer.ggml.tokens\[1\] = b'\\xff' is not text in UTF-8"),
    ({'tokens': ['a\n', 'b', 'a\n']}, r"tokenizer.ggml.tokens has 'a\\n' twice"),
    ({'token_type': [1]}, 'tokenizer.ggml.token_type has 1 entries for 17 tokens'),
    ({'merges': None}, 'tokenizer.ggml.merges is missing'),
    ({'merges': ['a b', 'a c']}, r"tokenizer.ggml.merges\[1\] = 'a c': 'c' is not among the tokens"),
    ({'merges': ['b a']}, r"tokenizer.ggml.merges\[0\] = 'b a': 'ba' is not"),
    ({'merges': ['ab']}, r"tokenizer.ggml.merges\[0\] = 'ab': '' is not"),
    ({'bos_token_id': -1}, 'tokenizer.ggml.bos_token_id = -1 is not the number of one of the 17 tokens'),
    ({'eos_token_id': 1 << 31}, 'tokenizer.ggml.eos_token_id = 2147483648 is not'),
    ({'padding_token_id': 'x'}, "tokenizer.ggml.padding_token_id = 'x' is not"),
    ({'add_bos_token': True}, 'add_bos_token is true, and tokenizer.ggml.bos_token_id is missing'),
    ({'add_bos_token': 1}, 'add_bos_token = 1 is neither true nor false'),
  ],
)
def test_broken_metadata_say_so_in_a_line(change, message):
  changed = words() | {f'tokenizer.ggml.{field}': value for field, value in change.items()}
  with pytest.raises(UserError, match=message) as caught:
    read_vocabulary({key: value for key, value in changed.items() if value is not None})
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('scores', 'message'),
  [
    (None, 'tokenizer.ggml.scores is missing'),
    ([0.0], 'tokenizer.ggml.scores has 1 entries for 260 tokens'),
    ([float('nan')] * 260, 'tokenizer.ggml.scores has an entry that is not a number'),
    (['0'] * 260, 'tokenizer.ggml.scores has an entry that is not a number'),
  ],
)
def test_broken_scores_say_so(scores, message):
  changed = {**pieces({'a': -1.0}), 'tokenizer.ggml.scores': scores}
  with pytest.raises(UserError, match=message):
    read_vocabulary({key: value for key, value in changed.items() if value is not None})


def built(model, pre_tokenizer=None, normalizer=None, post_processor=None, **others) -> dict[str, bytes]:
  inner = tokenizers.Tokenizer(model)
  for field, part in {
    'pre_tokenizer': pre_tokenizer,
    'normalizer': normalizer,
    'post_processor': post_processor,
  }.items():
    if part is not None:
      setattr(inner, field, part)
  return {
    'tokenizer.json': inner.to_str().encode(),
    **{f'{name}.json': json.dumps(v).encode() for name, v in others.items()},
  }


LETTERS = {'a': 0, 'b': 1, 'ab': 2, 'ba': 3, 'aba': 4}
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)


def byte_level(**changed) -> dict[str, bytes]:
  return built(models.BPE(LETTERS, [('a', 'b')]), **{'pre_tokenizer': WORDS, **changed})


def test_a_folder_of_transformers_is_written():
  # Merges as strings, as older files have them; numbers left out; NFC; tokens as objects; a template in the config.
  files = byte_level(
    normalizer=normalizers.NFC(),
    tokenizer_config={'eos_token': {'content': 'aba'}, 'chat_template': 'x'},
    special_tokens_map={'pad_token': 'b', 'eos_token': 'a'},
    generation_config={'bos_token_id': 0, 'eos_token_id': [4, 1]},
  )
  state = json.loads(files['tokenizer.json'])
  state['model'] |= {'merges': ['a b'], 'vocab': {**LETTERS, 'aba': 6, '<user>': 7}}
  state['added_tokens'] = [
    {'id': number, 'content': name, 'special': special, 'single_word': False, 'lstrip': False, 'rstrip': False,
     'normalized': False} for number, name, special in [(6, 'aba', True), (7, '<user>', False)]
  ]  # fmt: skip
  files |= {'tokenizer.json': json.dumps(state).encode()}
  assert write_vocabulary(files, size=9) == {
    **of(model='gpt2', pre='gpt-2', tokens=['a', 'b', 'ab', 'ba', '[PAD4]', '[PAD5]', 'aba', '<user>', '[PAD8]']),
    **of(token_type=[1, 1, 1, 1, 5, 5, 3, 4, 5], merges=['a b'], bos_token_id=0, eos_token_id=6, padding_token_id=1),
    **of(eot_token_id=4, eom_token_id=1, add_bos_token=False, add_eos_token=False),
    'tokenizer.chat_template': 'x',
  }


def test_metaspace_is_the_space_before_a_text():
  merges = [('a', 'b'), ('b', 'a'), ('ab', 'a'), ('a', 'ba')]
  for scheme, prefix in {'first': True, 'always': True, 'never': False}.items():
    space = pre_tokenizers.Metaspace('▁', scheme, split=False)
    written = write_vocabulary(built(models.BPE(LETTERS, merges, byte_fallback=True), space))
    assert written['tokenizer.ggml.add_space_prefix'] is prefix
    assert written['tokenizer.ggml.scores'] == [-3.0, -4.0, 0.0, -1.0, -2.0]


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    ({'tokenizer.model': b''}, 'there is tokenizer.model and no tokenizer.json: save'),
    ({'tokenizer.json': b'{"kind": "bytes"}'}, 'tokenizer.json: not of the tokenizers library'),
    (byte_level() | {'tokenizer_config.json': b'{'}, 'tokenizer_config.json: not JSON'),
    (byte_level() | {'tokenizer_config.json': b'[]'}, 'tokenizer_config.json: not a JSON object'),
    (byte_level(tokenizer_config={'bos_token': '<s>'}), "tokenizer_config.json: bos_token '<s>' is not among"),
    (
      byte_level(generation_config={'eos_token_id': 5}),
      r'generation_config.json: eos_token_id \[5\] is not among the 5',
    ),
    (built(models.WordPiece(LETTERS, unk_token='a')), 'llama.cpp has no name for its WordPiece'),
    (built(models.BPE({'a': 0}, [], end_of_word_suffix='</w>')), 'llama.cpp has no name for its BPE'),
    (byte_level(pre_tokenizer=pre_tokenizers.Whitespace()), 'llama.cpp has no name for its BPE and what comes before'),
    (byte_level(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)), 'llama.cpp has no name'),
    (byte_level(normalizer=normalizers.Lowercase()), 'llama.cpp has no name'),
    (
      built(models.BPE(LETTERS, [('a', 'b')], byte_fallback=True), normalizer=normalizers.Replace(' ', '▁')),
      'its merges are not every way to make a piece of two',
    ),
    (
      byte_level(post_processor=processors.TemplateProcessing('b $A', None, [('b', 1)])),
      'its post_processor adds other tokens than the bos_token',
    ),
  ],
)
def test_what_llama_cpp_has_no_name_for_is_refused(files, message):
  with pytest.raises(UserError, match=message) as caught:
    write_vocabulary(files)
  assert '\n' not in str(caught.value)


def test_a_vocabulary_larger_than_the_model_is_refused():
  with pytest.raises(UserError, match='has 5 tokens and the model 4'):
    write_vocabulary(byte_level(), size=4)


@pytest.mark.assets
@pytest.mark.parametrize('name', VECTORS)
def test_the_vectors_of_llama_cpp(name):
  """Tokenised there as plain text, without BOS and without names of special tokens."""
  (path,) = assets.asset('tokenizer_vectors').rglob(f'ggml-vocab-{name}.gguf')
  texts = path.with_name(f'{path.name}.inp').read_text('utf-8').split('\n__ggml_vocab_test__\n')
  lines = path.with_name(f'{path.name}.out').read_text().split('\n')
  files = read_vocabulary(head(path))
  tokenizer = bpe.from_json(files['tokenizer.json'], name)
  assert len(texts) == (51 if name == 'qwen35' else 47)
  for text, line in zip(texts, lines, strict=True):
    ids = tokenizer.encode(text)
    assert ids.tolist() == [int(number) for number in line.split()]
    assert tokenizer.decode_bytes(ids) == text.encode()


@pytest.mark.assets
@pytest.mark.parametrize('name', ['gpt-2', 'llama-spm'])
def test_a_whole_vocabulary_is_written_as_it_was_read(name):
  (path,) = assets.asset('tokenizer_vectors').rglob(f'ggml-vocab-{name}.gguf')
  files = read_vocabulary(head(path))
  again = read_vocabulary(write_vocabulary(files))
  assert again['tokenizer.json'] == files['tokenizer.json']
  assert again['generation_config.json'] == files['generation_config.json']


@pytest.mark.assets
def test_smollm2():
  (path,) = assets.asset('smollm2').rglob('*.gguf')
  metadata = head(path)
  files = read_vocabulary(metadata)
  tokenizer = bpe.from_json(files['tokenizer.json'], 'smollm2')
  ids = tokenizer.encode('Hello 123 world')
  assert [tokenizer.decode_bytes([number]) for number in ids] == [b'Hello', b' ', b'1', b'2', b'3', b' world']
  assert b"{{'<|im_start|>' + message['role']" in files['chat_template.jinja']
  assert json.loads(files['generation_config.json']) == {'bos_token_id': 1, 'eos_token_id': 2, 'pad_token_id': 2}
  written = write_vocabulary(files)
  for key, value in metadata.items():
    if key.startswith('tokenizer.') and key != 'tokenizer.ggml.add_space_prefix':  # means nothing to this kind
      assert written[key] == text_of(value)


def text_of(value):
  if isinstance(value, list):
    return [text_of(entry) for entry in value]
  return value.decode() if isinstance(value, bytes) else value
