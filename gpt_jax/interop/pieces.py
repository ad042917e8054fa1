"""SentencePiece's BPE, which merges by the score of a piece, as a BPE of the tokenizers library, which has an order."""

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from gpt_jax.interop.splitters import plain, state
from gpt_jax.types import UserError

SPACE = '▁'
"""Stands for a space."""

_UNSPACED = normalizers.Replace(' ', SPACE)
_SPACED = normalizers.Sequence([normalizers.Prepend(SPACE), _UNSPACED])


def sentencepiece(
  numbers: Mapping[str, int], scores: Mapping[str, float], unknown: str | None, prefix: bool
) -> tokenizers.Tokenizer:
  """The tokenizer of a SentencePiece vocabulary with a token <0xXX> for each byte.

  Args:
    numbers: of all tokens.
    scores: of the pieces that merges may make.
    unknown: the token of what is neither a piece nor bytes.
    prefix: a space is put before each text, and taken away again.
  """
  model = models.BPE(
    dict(numbers), merges_by_score(scores), unk_token=unknown, fuse_unk=True, byte_fallback=True
  )  # fmt: skip
  inner = tokenizers.Tokenizer(model)
  inner.normalizer = _SPACED if prefix else _UNSPACED
  steps = [decoders.Replace(SPACE, ' '), decoders.ByteFallback(), decoders.Fuse()]
  inner.decoder = decoders.Sequence([*steps, decoders.Strip(' ', 1, 0)] if prefix else steps)
  return inner


def merges_by_score(scores: Mapping[str, float]) -> list[tuple[str, str]]:
  """Every way to make a piece of two pieces, pieces of high score first.

  Of equal scores SentencePiece takes the leftmost in the text, which no order of merges can say. Here they keep the
  order of the vocabulary, and of the ways to one piece the one with the longer left half is first: in a run of one
  letter it is the leftmost.
  """
  return [
    (piece[:cut], piece[cut:])
    for piece in sorted(scores, key=scores.__getitem__, reverse=True)
    for cut in range(len(piece) - 1, 0, -1)
    if piece[:cut] in scores and piece[cut:] in scores
  ]


def scores_of_merges(pieces: Sequence[str], merges: Sequence[tuple[str, str]]) -> dict[str, float]:
  """Scores of which `merges_by_score` gives these merges, as far as they are of pieces.

  Raises:
    UserError: no scores do.
  """
  known = set(pieces)
  merges = [merge for merge in merges if known.issuperset((*merge, ''.join(merge)))]
  order = dict.fromkeys([*map(''.join, merges), *pieces])
  scores = {piece: -float(place) for place, piece in enumerate(order)}
  ours = merges_by_score(scores)
  if list(map(''.join, ours)) != list(map(''.join, merges)) or set(ours) != set(merges):
    raise UserError(
      'tokenizer.json: its merges are not every way to make a piece of two pieces, best piece first, and llama.cpp has '
      'no others with byte_fallback; train the tokenizer as byte-level BPE'
    )
  return {piece: scores[piece] for piece in pieces}


def space_prefix(tokenizer: Mapping[str, Any]) -> bool | None:
  """Whether the JSON of a BPE tokenizer puts a space before a text; None where it is not SentencePiece's."""
  found = plain(tokenizer['normalizer']), plain(tokenizer['pre_tokenizer'])
  if tokenizer['model']['byte_fallback']:
    for prefix, normalizer in ((True, _SPACED), (False, _UNSPACED)):
      if found == (plain(state(normalizer)), None):
        return prefix
    for scheme in ('always', 'first', 'never'):
      if found == (None, state(pre_tokenizers.Metaspace(SPACE, scheme, split=False))):
        return scheme != 'never'
  return None
