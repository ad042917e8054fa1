"""A sweep of seconds, and variants of it."""

import pathlib

FILE = """
from configs.sweeps.points import param, product, seeds

PRE, POST = ({{'model.residual': residual}} for residual in ('pre', 'post'))

def get_sweep():
  return {{
    'claim': 'Pre-norm is lower.',
    'source': 'nobody',
    'experiment': 'pretrain',
    'config': 'configs/pretrain/tiny.py',
    'points': product(seeds(2), [PRE, POST], [{{'data.source': 'file:{text}', 'num_steps': 30, **{more}}}]),
    'baseline': PRE,
    'metrics': {{'validation_loss': 'validation loss (nats per token)'}},
    'expect': [{{'metric': 'validation_loss', 'of': PRE, 'than': POST, 'is': 'lower'}}],
  }}
"""


def written(folder: pathlib.Path, more: dict | None = None, **replaced: str) -> pathlib.Path:
  """A sweep of two parts and two seeds."""
  (folder / 'text.txt').write_text('the quick brown fox jumps over the lazy dog; ' * 100)
  content = FILE.format(text=folder / 'text.txt', more=more or {})
  for old, new in replaced.items():
    assert old in content
    content = content.replace(old, new)
  (folder / 'small.py').write_text(content)
  return folder / 'small.py'
