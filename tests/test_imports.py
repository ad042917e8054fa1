"""Imports go down: the syntax trees hold the design's rules, and importing the package stays light."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted(path for folder in ('gpt_jax', 'experiments', 'configs') for path in (ROOT / folder).rglob('*.py'))

# What a room may import of gpt_jax besides itself. Rooms of the middle row know nothing of one another.
BASE = {'types', 'names', 'cache', 'hosts'}
MIDDLE = {'models', 'objectives', 'data', 'training', 'sharding', 'interop'}
BELOW = {
  'types': set(),
  'names': {'types'},
  'cache': {'types'},
  'hosts': {'types'},
  'compiler': {'cache'},
  **{room: BASE for room in MIDDLE},
  'interop': BASE | {'models'},
  'decoding': BASE | MIDDLE,
  'planning': BASE | MIDDLE,
  'rollouts': BASE | MIDDLE | {'decoding'},
  'evaluation': BASE | MIDDLE | {'decoding', 'rollouts'},
}
# Extras of tests and benchmarks: only ever imported inside the function that needs them.
HEAVY = {'torch', 'transformers', 'tensorflow', 'datasets', 'beartype', 'pytest'}


def imported(tree: ast.AST) -> set[str]:
  """Full names of the modules (or what is taken from them) that a syntax tree imports."""
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'imports are absolute'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def room(name: str) -> str:
  """The room of gpt_jax that a full name lies in: gpt_jax.models.heads.X is in models."""
  return name.split('.')[1]


def parsed(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text())


def identity(path: pathlib.Path) -> str:
  return str(path.relative_to(ROOT))


@pytest.mark.parametrize('path', SOURCES, ids=identity)
def test_imports_go_down(path):
  top, *inner = path.relative_to(ROOT).with_suffix('').parts
  for name in imported(parsed(path)):
    head = name.split('.')[0]
    assert head not in ('tests', 'bench', 'colab'), f'{identity(path)} imports {name}'
    if top == 'configs':
      assert head not in ('gpt_jax', 'experiments'), f'a config is plain data, and imports {name}'
    if top == 'gpt_jax':
      assert head not in ('experiments', 'configs'), f'{identity(path)} imports {name}'
      if head == 'gpt_jax' and inner != ['__init__']:
        here = inner[0]
        assert here in BELOW, f'{here} is a room the design does not know: add it to the design and to this table'
        assert room(name) in BELOW[here] | {here, 'types', 'names'}, f'{identity(path)} imports {name}'
        assert here not in ('types',) or room(name) == 'types'


@pytest.mark.parametrize('path', SOURCES, ids=identity)
def test_linen_lives_in_models(path):
  """Elsewhere a model is an argument with an `apply`."""
  if path.relative_to(ROOT).parts[:2] == ('gpt_jax', 'models'):
    return
  linen = {name for name in imported(parsed(path)) if re.match(r'flax\.(linen|nnx)\b', name)}
  assert not linen, f'{identity(path)} imports {linen}'


@pytest.mark.parametrize('path', SOURCES, ids=identity)
def test_heavy_packages_are_imported_where_they_are_used(path):
  """At the top of a module they would be everyone's requirement."""
  top_level = ast.Module([node for node in parsed(path).body if not isinstance(node, ast.FunctionDef)], [])
  assert not {name.split('.')[0] for name in imported(top_level)} & HEAVY


def test_importing_the_package_is_light():
  """In a process of its own: none of the extras is loaded by any module of the core that training needs."""
  modules = [
    '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for path in SOURCES
    if path.parts[-2] in ('models', 'objectives', 'training', 'decoding') and path.stem != '__init__'
  ]
  program = f'import sys, {", ".join(modules)}; print(sorted({HEAVY} & set(sys.modules)))'
  done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, check=True)
  assert done.stdout.strip() == '[]'


@pytest.mark.parametrize('path', SOURCES, ids=identity)
def test_names_of_files_say_what_is_in_them(path):
  assert not re.search(r'(^|_)(utils?|helpers?|common|lib|misc|factory|manager|base_?class)($|_)', path.stem)


def test_the_rules_catch_what_they_forbid():
  """Each rule sees the import it is for, in every form an import has."""
  tree = ast.parse('import flax.linen as nn\nfrom flax import linen\ndef f():\n  from gpt_jax.data import rows')
  assert imported(tree) == {'flax.linen', 'gpt_jax.data.rows'}
  assert room('gpt_jax.data.rows') not in BELOW['models'] and room('gpt_jax.models.heads') in BELOW['decoding']
