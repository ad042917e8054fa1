"""A cache folder of its own for every test, except those that fetch."""

import os
import pathlib

import pytest


@pytest.fixture(autouse=True)
def cache_folder(request, monkeypatch, tmp_path):
  if 'assets' in request.keywords:
    return pathlib.Path(os.environ.get('GPT_JAX_CACHE') or '~/.cache/gpt_jax').expanduser()
  folder = tmp_path / 'cache'
  monkeypatch.setenv('GPT_JAX_CACHE', str(folder))
  return folder


@pytest.fixture
def shared():
  """Files for tests that may be skipped where they are absent."""
  folder = pathlib.Path(os.environ.get('GPT_JAX_SHARED') or pathlib.Path(__file__).parents[3] / 'shared') / 'data'
  if not folder.is_dir():
    pytest.skip(f'{folder} is absent')
  return folder
