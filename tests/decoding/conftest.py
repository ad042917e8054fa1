"""Texts of tests are short, so rings are too: what a banded layer keeps comes round within them."""

import pytest

from gpt_jax.decoding import conversation, drafts, steps


@pytest.fixture(autouse=True)
def small_rings(monkeypatch):
  for module in (conversation, drafts, steps):
    monkeypatch.setattr(module, 'SPARE', 8)
