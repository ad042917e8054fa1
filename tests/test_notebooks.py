"""The notebooks of colab/ run from top to bottom, and hold nothing that the package should."""

import ast
import pathlib
import re

from IPython.core.inputtransformer2 import TransformerManager
import nbformat
import papermill
import pytest

import gpt_jax

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'colab').glob('*.ipynb'))
PARAMETERS = {
  'masks': {'num_steps': 2},
  'train': {'source': f'file:{ROOT / "LICENSE"}', 'prompt': 'License', 'num_steps': 2, 'new_tokens': 5},
}
"""By notebook: what its cell tagged `parameters` says in a test. A `workdir` there is put in a temporary folder."""

notebooks = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
  """Those of its author: papermill adds one."""
  injected = lambda cell: 'injected-parameters' in cell.metadata.get('tags', [])
  return [cell for cell in notebook.cells if cell.cell_type == 'code' and not injected(cell)]


def printed(cell: nbformat.NotebookNode) -> str:
  return ''.join(output.text for output in cell.outputs if output.get('name') == 'stdout')


def test_there_are_notebooks():
  assert {'families', 'masks', 'train'} <= {path.stem for path in NOTEBOOKS}
  assert set(PARAMETERS) <= {path.stem for path in NOTEBOOKS}


@notebooks
def test_notebook_runs(path, tmp_path, monkeypatch):
  """As a user has it: in the notebook's folder, on one CPU, with nothing cached but compiled programs."""
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  monkeypatch.setenv('GPT_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setenv('XLA_FLAGS', '--xla_backend_optimization_level=0')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache' / 'jax'))
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
  known = papermill.inspect_notebook(str(path))
  given = PARAMETERS.get(path.stem, {}) | ({'workdir': str(tmp_path / 'runs')} if 'workdir' in known else {})
  assert set(given) <= set(known), 'the test sets parameters that the notebook does not have'
  executed = papermill.execute_notebook(
    str(path), str(tmp_path / path.name), given, cwd=str(path.parent), progress_bar=False, execution_timeout=300
  )
  assert re.search(rf'^gpt_jax {re.escape(gpt_jax.__version__)} on 1 x cpu: \w', printed(code_cells(executed)[0]), re.M)


@notebooks
def test_notebook_defines_nothing_long(path):
  for cell in code_cells(nbformat.read(path, 4)):
    for node in ast.walk(ast.parse(TransformerManager().transform_cell(cell.source))):
      assert not isinstance(node, ast.ClassDef), f'{path.name} defines the class {node.name}'
      if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        assert node.end_lineno - node.lineno < 5, f'{path.name} has a function of more than five lines: {cell.source}'


@notebooks
def test_notebook_stores_no_outputs(path):
  for cell in code_cells(nbformat.read(path, 4)):
    assert not cell.outputs and cell.execution_count is None


def test_notebooks_begin_alike():
  """The cell that installs and says what it runs on is one, wherever it stands."""
  assert len({code_cells(nbformat.read(path, 4))[0].source for path in NOTEBOOKS}) == 1
