"""Runs side by side."""

import json

import pandas as pd

from tests.experiments.program import spawn


def run_folder(path, seed, rate, loss=None):
  path.mkdir()
  config = {'seed': seed, 'optimizer': {'learning_rate': rate}, 'num_steps': 3}
  (path / 'config.json').write_text(json.dumps({'config': config}))
  lines = [{'step': step, 'tokens': 10 * step, 'loss': 4 - rate * step} for step in (1, 2, 3)]
  (path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  if loss is not None:
    (path / 'result.json').write_text(json.dumps({'step': 3, 'validation_loss': loss, 'speed': {'seconds': 1.5}}))
  return path


def test_what_differs_and_what_came_out(tmp_path):
  a, b = run_folder(tmp_path / 'a', 0, 0.1, 3.5), run_folder(tmp_path / 'b', 1, 0.1, 3.25)
  c = run_folder(tmp_path / 'c', 0, 0.5)
  ended = spawn('compare', str(a), str(b), str(c), f'--out={tmp_path / "out"}')
  assert ended.code == 0, ended.err
  table = pd.read_csv(tmp_path / 'out/table.csv')
  assert list(table)[:4] == ['run', 'seed', 'optimizer.learning_rate', 'finished'], 'num_steps is the same'
  assert table['finished'].tolist() == [True, True, False]
  assert table['validation_loss'].tolist()[:2] == [3.5, 3.25] and table['step'].tolist() == [3, 3, 3]
  assert '3.25' in ended.out and 'num_steps' not in ended.out
  assert (tmp_path / 'out/curves.png').read_bytes()[:4] == b'\x89PNG'


def test_seeds_of_one_config_share_a_curve(tmp_path):
  from experiments.compare import compare

  _, curves = compare([run_folder(tmp_path / str(k), k % 2, 0.1 + (k > 1)) for k in range(4)])
  assert {name: len(seeds) for name, seeds in curves.items()} == {'learning rate 0.1': 2, 'learning rate 1.1': 2}


def test_a_folder_that_is_none(tmp_path):
  ended = spawn('compare', str(tmp_path), f'--out={tmp_path / "out"}')
  assert ended.code == 2 and f'{tmp_path} is not the folder of a run' in ended.err and not (tmp_path / 'out').exists()
  assert spawn('compare').code == 2
