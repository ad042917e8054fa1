"""How a byte-level BPE parts a text into words before it merges within them, by llama.cpp's names."""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

from tokenizers import Regex, pre_tokenizers


@dataclasses.dataclass(frozen=True)
class Splitter:
  """What comes before the merges of a byte-level BPE."""

  parts: pre_tokenizers.PreTokenizer
  whole_words: bool = False
  """A word that is a token becomes that token, whatever its merges say."""
  adds_bos: bool = False
  """A text begins with the BOS unless the file says otherwise."""


def _pattern(pattern: str) -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.Split(Regex(pattern), 'isolated')


def _sequence(*parts: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.Sequence(list(parts))


_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
"""GPT-2's pattern: contractions, then letters, numbers or others after at most one space, then white space."""
_NUMBERS = pre_tokenizers.Digits(individual_digits=False)
_TRIPLES = _pattern('[0-9][0-9][0-9]')


def _cased(letters: str, numbers: str) -> Splitter:
  """The pattern of GPT-4 and its heirs: contractions in any case, any one mark before letters, few digits at once."""
  return Splitter(
    _sequence(
      _pattern(
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{numbers}"
        rf'| ?[^\s{letters.strip("[]")}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
      ),
      _BYTES,
    )
  )


_GPT2 = Splitter(_WORDS)
_SMOLLM = Splitter(_sequence(pre_tokenizers.Digits(individual_digits=True), _WORDS))
_LLAMA3 = dataclasses.replace(_cased(r'\p{L}', r'\p{N}{1,3}'), whole_words=True, adds_bos=True)

# Of names for one and the same the first is written.
SPLITTERS: Mapping[str, Splitter] = {
  'gpt-2': _GPT2,
  'mpt': _GPT2,
  'smollm': _SMOLLM,
  'starcoder': _SMOLLM,
  'refact': _SMOLLM,
  'command-r': _SMOLLM,
  'llama-bpe': _LLAMA3,
  'llama3': _LLAMA3,
  'llama-v3': _LLAMA3,
  'qwen2': _cased(r'\p{L}', r'\p{N}'),
  'qwen35': _cased(r'[\p{L}\p{M}]', r'\p{N}'),
  'falcon': Splitter(_sequence(pre_tokenizers.Punctuation('contiguous'), _WORDS, _NUMBERS, _TRIPLES)),
  # As Falcon's, but the backtick is no mark, and numbers are parted before letters stand for bytes: ² and ¼ do so.
  'default': Splitter(
    _sequence(
      _pattern(r'[\p{P}$+<=>^~|]+'),
      _pattern(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
      _NUMBERS,
      _TRIPLES,
      _BYTES,
    )
  ),
}


def state(part: Any) -> Any:
  """The JSON of a part of a tokenizer."""
  return json.loads(part.__getstate__())


def plain(state: Any) -> Any:
  """The JSON of a normalizer or pre-tokenizer less what does not change the tokens; None where it does nothing."""
  if state is None:
    return None
  for steps in ('normalizers', 'pretokenizers'):
    if steps in state:
      inner = [step for step in map(plain, state[steps]) if step]
      return {'type': 'Sequence', steps: inner} if len(inner) > 1 else inner[0] if inner else None
  return {field: value for field, value in state.items() if field != 'trim_offsets'}


def name_of(tokenizer: Mapping[str, Any]) -> str | None:
  """llama.cpp's name for the splitter in the JSON of a BPE tokenizer; None where it has none.

  NFC is no part of the name: llama.cpp leaves it out of the tokenizers that have it.
  """
  if plain(tokenizer['normalizer']) not in (None, {'type': 'NFC'}):
    return None
  sought = plain(tokenizer['pre_tokenizer']), tokenizer['model']['ignore_merges']
  for name, splitter in SPLITTERS.items():
    if (plain(state(splitter.parts)), splitter.whole_words) == sought:
      return name
  return None
