"""What can be told of texts by counting."""

from collections.abc import Sequence


def distinct(texts: Sequence[Sequence[int]], n: int) -> float:
  """Distinct n-grams over all n-grams of all texts (Li et al. 2016, section 5.3); 0 where there is none."""
  grams = [tuple(text[start : start + n]) for text in texts for start in range(len(text) - n + 1)]
  return len(set(grams)) / max(len(grams), 1)
