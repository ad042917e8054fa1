"""What checks annotations while tests run."""

from collections.abc import Callable

from beartype import beartype


def check(function: Callable) -> Callable:
  """beartype, but for what makes a struct: jax puts shapes, shardings and placeholders where arrays are annotated."""
  return function if function.__name__ == '__init__' else beartype(function)
