"""The tokenizer inside a GGUF file, as the files beside a transformers model, and back."""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import json
import math
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, processors

from gpt_jax.interop.metadata import BROKEN, Metadata, decoded, entries, flag, index, text, texts
from gpt_jax.interop.pieces import scores_of_merges, sentencepiece, space_prefix
from gpt_jax.interop.splitters import SPLITTERS, name_of
from gpt_jax.types import UserError

GGML = 'tokenizer.ggml'
TEMPLATE = 'tokenizer.chat_template'
NONE = ('none', 'no_vocab')
"""What tokenizer.ggml.model is in a file without a tokenizer."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""The values of tokenizer.ggml.token_type."""

SPECIAL = {'bos_token': 'bos', 'eos_token': 'eos', 'unk_token': 'unknown', 'pad_token': 'padding'}
"""The words of tokenizer.ggml.*_token_id, by those of tokenizer_config.json."""

ENDS = ('eos', 'eot', 'eom')
"""The ends of a text, a turn and a message: after each of them the model has said all."""

LLAMA = {'unknown': 0, 'bos': 1, 'eos': 2}
"""Their numbers in a SentencePiece vocabulary that doesn't say."""

KNOWN = f'byte-level BPE parted as {", ".join(SPLITTERS)}; and BPE of SentencePiece with a token for each byte'


@dataclasses.dataclass(frozen=True)
class Tokens:
  """A vocabulary: texts and kinds by number."""

  texts: Sequence[str]
  kinds: Sequence[int]

  def __len__(self) -> int:
    return len(self.texts)

  @property
  def numbers(self) -> dict[str, int]:
    return {text: number for number, text in enumerate(self.texts)}

  def of(self, *kinds: int) -> list[str]:
    return [text for text, kind in zip(self.texts, self.kinds, strict=True) if kind in kinds]

  @property
  def pieces(self) -> list[str]:
    """What a merge may make. In llama.cpp an unused token is none the less one."""
    special = set(self.of(UNKNOWN, CONTROL, USER_DEFINED, BYTE))
    return [text for text in self.texts if text not in special]


def read_vocabulary(metadata: Metadata) -> dict[str, bytes]:
  """The files that say what the metadata of a GGUF file says about text, by the names that transformers gives them.

  tokenizer.json, tokenizer_config.json and generation_config.json where there is a vocabulary, chat_template.jinja
  where there is a template. Texts become the tokens that llama.cpp makes of them, and begin with the BOS where it puts
  one; but pieces never merge to a control token, as in SentencePiece, where llama.cpp may make one of </ and s>.
  A byte-level vocabulary that names no splitter is parted as llama.cpp's `default`, whatever it was trained with.

  Args:
    metadata: plain values by key: int, float, bool, lists of them, and text as str or as bytes of UTF-8.

  Raises:
    UserError: a vocabulary or a splitter that has no place here, or metadata that contradict themselves.
  """
  files = {}
  if (template := text(metadata, TEMPLATE)) is not None:
    files['chat_template.jinja'] = template.encode()
  model = text(metadata, f'{GGML}.model')
  if model is None and f'{GGML}.tokens' in metadata:
    raise UserError(f'{GGML}.model is missing; {BROKEN}')
  if model is None or model in NONE:
    return files
  if model not in ('gpt2', 'llama'):
    raise UserError(f'{GGML}.model = {model!r} can not be read; what can: {KNOWN}')
  tokens = _tokens(metadata)
  defaults = {word: number for word, number in LLAMA.items() if model == 'llama' and number < len(tokens)}
  ids = {
    word: index(metadata, f'{GGML}.{word}_token_id', len(tokens), defaults.get(word))
    for word in (*SPECIAL.values(), *ENDS)
  }
  if model == 'llama':
    inner, adds_bos = _pieces(metadata, tokens, ids['unknown']), True
  else:
    inner, adds_bos = _byte_level(metadata, tokens)
  inner.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in tokens.of(UNKNOWN, CONTROL)])
  inner.add_tokens([AddedToken(name, normalized=False) for name in tokens.of(USER_DEFINED)])
  bos = _added_id(metadata, 'bos', ids['bos'], adds_bos)
  eos = _added_id(metadata, 'eos', ids['eos'], False)
  inner.post_processor = _around(bos, eos, tokens)
  context = metadata.get(f'{text(metadata, "general.architecture")}.context_length')
  config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    **{field: tokens.texts[number] for field, word in SPECIAL.items() if (number := ids[word]) is not None},
    'add_bos_token': bos is not None,
    'add_eos_token': eos is not None,
    'clean_up_tokenization_spaces': False,
    'model_max_length': context if isinstance(context, int) else None,
  }
  ends = list(dict.fromkeys(ids[word] for word in ENDS if ids[word] is not None))
  generation = {
    'bos_token_id': ids['bos'],
    'eos_token_id': ends[0] if len(ends) == 1 else ends or None,
    'pad_token_id': ids['padding'],
  }
  return files | {
    'tokenizer.json': inner.to_str().encode(),
    'tokenizer_config.json': _json(config),
    'generation_config.json': _json(generation),
  }


def _byte_level(metadata: Metadata, tokens: Tokens) -> tuple[tokenizers.Tokenizer, bool]:
  """GPT-2's kind: merges in an order, within words, of letters that stand for bytes; and whether it adds a BOS."""
  name = text(metadata, f'{GGML}.pre') or 'default'
  if name not in SPLITTERS:
    raise UserError(f'{GGML}.pre = {name!r} can not be read; what can: {KNOWN}')
  splitter, numbers, merges = SPLITTERS[name], tokens.numbers, []
  for place, merge in enumerate(texts(metadata, f'{GGML}.merges')):
    first, _, second = merge.partition(' ')
    for part in (first, second, first + second):
      if part not in numbers:
        raise UserError(f'{GGML}.merges[{place}] = {merge!r}: {part!r} is not among the tokens; {BROKEN}')
    merges.append((first, second))
  inner = tokenizers.Tokenizer(models.BPE(numbers, merges, ignore_merges=splitter.whole_words))
  inner.pre_tokenizer = splitter.parts
  inner.decoder = decoders.ByteLevel()
  return inner, splitter.adds_bos


def _pieces(metadata: Metadata, tokens: Tokens, unknown: int | None) -> tokenizers.Tokenizer:
  """LLaMA's kind, which is SentencePiece's."""
  scores = entries(metadata, f'{GGML}.scores', len(tokens))
  if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
    raise UserError(f'{GGML}.scores has an entry that is not a number; {BROKEN}')
  numbers = tokens.numbers
  return sentencepiece(
    numbers,
    {piece: float(scores[numbers[piece]]) for piece in tokens.pieces},
    None if unknown is None else tokens.texts[unknown],
    flag(metadata, f'{GGML}.add_space_prefix', True),
  )


def _tokens(metadata: Metadata) -> Tokens:
  names = [name or f'[EMPTY_{number}]' for number, name in enumerate(texts(metadata, f'{GGML}.tokens'))]
  if not names:
    raise UserError(f'{GGML}.tokens is empty; {BROKEN}')
  if len(set(names)) < len(names):
    ((twice, _),) = collections.Counter(names).most_common(1)
    raise UserError(f'{GGML}.tokens has {twice!r} twice; {BROKEN}')
  key = f'{GGML}.token_type'
  return Tokens(names, entries(metadata, key, len(names)) if key in metadata else [NORMAL] * len(names))


def _added_id(metadata: Metadata, word: str, number: int | None, usual: bool) -> int | None:
  """The number, where the token is added to each text."""
  adds = flag(metadata, f'{GGML}.add_{word}_token', usual and number is not None)
  if adds and number is None:
    raise UserError(f'{GGML}.add_{word}_token is true, and {GGML}.{word}_token_id is missing; {BROKEN}')
  return number if adds else None


def _around(bos: int | None, eos: int | None, tokens: Tokens) -> processors.TemplateProcessing | None:
  """Puts the BOS before each text and the EOS behind it, where they are not None."""
  special = {word: number for word, number in (('bos', bos), ('eos', eos)) if number is not None}
  if not special:
    return None
  before, behind = ([word] if word in special else [] for word in ('bos', 'eos'))
  single = [*before, '$A', *behind]
  return processors.TemplateProcessing(
    single=single,
    pair=[*single, *(f'{part}:1' for part in (*before, '$B', *behind))],
    special_tokens=[
      {'id': word, 'ids': [number], 'tokens': [tokens.texts[number]]} for word, number in special.items()
    ],
  )


def write_vocabulary(files: Mapping[str, bytes], *, size: int | None = None) -> dict[str, Any]:
  """The metadata of a GGUF file for the tokenizer of a transformers folder: what `read_vocabulary` reads again.

  Without a tokenizer, tokenizer.ggml.model is `none`, as llama.cpp's own converter has it (its reader then takes the
  number of tokens from ARCHITECTURE.vocab_size). What tokenizer.json has and GGUF can't say is left out as llama.cpp
  leaves it out: SentencePiece's scores are the order of the merges; NFC; and where Metaspace puts a space before a text
  unless there is one, SentencePiece always puts it.

  Args:
    files: tokenizer.json, and as far as there are: tokenizer_config.json, special_tokens_map.json,
      generation_config.json, chat_template.jinja.
    size: the number of the model's embeddings, up to which unused tokens fill the vocabulary; None: as many as it has.

  Raises:
    UserError: a tokenizer that llama.cpp has no name for, a broken file, or a vocabulary that exceeds `size`.
  """
  settings = {name: _parsed(files, name) for name in ('tokenizer_config.json', 'special_tokens_map.json')}
  template = files.get('chat_template.jinja', settings['tokenizer_config.json'].get('chat_template'))
  metadata = {TEMPLATE: decoded('chat_template.jinja', template)} if isinstance(template, str | bytes) else {}
  if 'tokenizer.json' not in files:
    if others := sorted({'tokenizer.model', 'vocab.json'} & set(files)):
      raise UserError(f'there is {others[0]} and no tokenizer.json: save the tokenizer as one with transformers')
    return {f'{GGML}.model': NONE[0], **metadata}
  try:
    inner = tokenizers.Tokenizer.from_str(files['tokenizer.json'].decode())
  except Exception as error:  # the library raises bare Exceptions
    raise UserError(f'tokenizer.json: not of the tokenizers library ({error})') from None
  saved = json.loads(inner.to_str())
  tokens = _listed(inner, saved, size)
  ids = _named(settings, _parsed(files, 'generation_config.json'), tokens)
  return {
    **_model(saved, tokens),
    f'{GGML}.tokens': list(tokens.texts),
    f'{GGML}.token_type': list(tokens.kinds),
    **{f'{GGML}.{word}_token_id': number for word, number in ids.items()},
    **{f'{GGML}.add_{word}_token': value for word, value in _added(inner, ids).items()},
    **metadata,
  }


def _model(saved: Mapping[str, Any], tokens: Tokens) -> dict[str, Any]:
  """The merges, under llama.cpp's name for them."""
  model = saved['model']
  if model['type'] == 'BPE' and not model['continuing_subword_prefix'] and not model['end_of_word_suffix']:
    if (prefix := space_prefix(saved)) is not None:
      scores = scores_of_merges(tokens.pieces, [(first, second) for first, second in model['merges']])
      return {
        f'{GGML}.model': 'llama',
        f'{GGML}.pre': 'default',
        f'{GGML}.add_space_prefix': prefix,
        f'{GGML}.scores': [scores.get(text, 0.0) for text in tokens.texts],
      }
    if (name := name_of(saved)) is not None:
      merges = [' '.join(merge) for merge in model['merges']]
      return {f'{GGML}.model': 'gpt2', f'{GGML}.pre': name, f'{GGML}.merges': merges}
  raise UserError(
    f'tokenizer.json: llama.cpp has no name for its {model["type"]} and what comes before; it has {KNOWN}'
  )


def _listed(inner: tokenizers.Tokenizer, saved: Mapping[str, Any], size: int | None) -> Tokens:
  """All tokens and their kinds; numbers that no token has are unused ones."""
  numbers = inner.get_vocab(with_added_tokens=True)
  count = max(numbers.values(), default=-1) + 1
  if size is not None and size < count:
    raise UserError(f'tokenizer.json has {count} tokens and the model {size}: they are not of one model')
  texts = [f'[PAD{number}]' for number in range(size or count)]
  kinds = [UNUSED] * len(texts)
  for name, number in numbers.items():
    texts[number], kinds[number] = name, NORMAL
  if saved['model'].get('byte_fallback'):
    for name in {f'<0x{byte:02X}>' for byte in range(256)} & set(numbers):
      kinds[numbers[name]] = BYTE
  for token in saved['added_tokens']:
    if not token['special'] and (token['lstrip'] or token['rstrip'] or token['single_word']):
      raise UserError(f'tokenizer.json: llama.cpp can not look at what is around a token, as {token["content"]!r} does')
    kinds[token['id']] = CONTROL if token['special'] else USER_DEFINED
  if (unknown := saved['model'].get('unk_token')) in numbers:
    kinds[numbers[unknown]] = UNKNOWN
  return Tokens(texts, kinds)


def _named(settings: Mapping[str, Any], generation: Mapping[str, Any], tokens: Tokens) -> dict[str, int]:
  """The numbers of BOS, EOS and the like, by GGUF's words. Ends beside the EOS become those of a turn and a message."""
  numbers = tokens.numbers
  ids: dict[str, int] = {}
  for (file, fields), (field, word) in itertools.product(settings.items(), SPECIAL.items()):
    name = fields.get(field)
    name = name.get('content') if isinstance(name, dict) else name
    if name is not None and name not in numbers:
      raise UserError(f'{file}: {field} {name!r} is not among the tokens of tokenizer.json')
    if name is not None:
      ids.setdefault(word, numbers[name])
  for name in tokens.of(UNKNOWN):
    ids.setdefault('unknown', numbers[name])
  for field, words in {'bos_token_id': ('bos',), 'eos_token_id': ENDS, 'pad_token_id': ('padding',)}.items():
    stated = generation.get(field)
    stated = stated if isinstance(stated, list) else [] if stated is None else [stated]
    if not all(isinstance(number, int) and 0 <= number < len(tokens) for number in stated):
      raise UserError(f'generation_config.json: {field} {stated} is not among the {len(tokens)} tokens')
    rest = [number for number in stated if number not in [ids.get(word) for word in words]]
    ids |= dict(zip([word for word in words if word not in ids], rest, strict=False))
  return ids


def _added(inner: tokenizers.Tokenizer, ids: Mapping[str, int]) -> dict[str, bool]:
  """Whether the post-processor puts the BOS before a text, and the EOS behind it."""
  inner.no_padding()
  inner.no_truncation()
  bare, full = (inner.encode('a', add_special_tokens=special).ids for special in (False, True))
  bos, eos = ([ids[word]] if word in ids else [] for word in ('bos', 'eos'))
  for before, behind in itertools.product((False, True), repeat=2):
    if full == bos * before + bare + eos * behind:
      return {'bos': before, 'eos': behind}
  raise UserError(
    'tokenizer.json: its post_processor adds other tokens than the bos_token and eos_token of tokenizer_config.json, '
    'which llama.cpp can not; name them there'
  )


def _parsed(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
  try:
    fields = json.loads(files.get(name, b'{}'))
  except ValueError as error:
    raise UserError(f'{name}: not JSON ({error}); fetch it again') from None
  if not isinstance(fields, dict):
    raise UserError(f'{name}: not a JSON object; fetch it again')
  return fields


def _json(fields: Mapping[str, Any]) -> bytes:
  """Fields that are None are left out."""
  said = {field: value for field, value in fields.items() if value is not None}
  return (json.dumps(said, indent=2, ensure_ascii=False) + '\n').encode()
