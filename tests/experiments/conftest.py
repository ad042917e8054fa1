"""What several experiments begin from."""

import pathlib

import pytest

from tests.experiments.program import TINY, spawn
from tests.experiments.test_pretrain import TEXT


@pytest.fixture(scope='session')
def base(tmp_path_factory) -> pathlib.Path:
  """A run that knows its text by heart, with the text beside it."""
  folder = tmp_path_factory.mktemp('base')
  (folder / 'text.txt').write_text(TEXT * 100)
  source = f'--config.data.source=file:{folder / "text.txt"}'
  ended = spawn('pretrain', f'--config={TINY}', source, f'--workdir={folder / "run"}', '--config.num_steps=150')
  assert ended.code == 0, ended.err
  return folder / 'run'
