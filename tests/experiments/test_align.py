"""The whole road on a text of one line: every stage from the one before, and a page of all."""

import json
import pathlib

import pytest

from tests.experiments.program import call, spawn
from tests.experiments.test_pretrain import TEXT

ROAD = """
def get_road():
  return {{
    'title': 'Foxes',
    'stages': {{
      'pretrain': {{'config': 'configs/pretrain/tiny.py', 'fields': {{'data.source': 'file:{folder}/text.txt'}}}},
      'instruct': {{
        'config': 'configs/instruct/tiny.py',
        'fields': {{'init_from': '{{pretrain}}', 'data.source': 'file:{folder}/rated.jsonl', 'epochs': 0.5}},
      }},
      'reward': {{
        'config': 'configs/reward/tiny.py',
        'fields': {{'init_from': '{{instruct}}', 'data.source': 'file:{folder}/rated.jsonl', 'epochs': 1.0}},
      }},
      'policy': {{
        'config': 'configs/policy/tiny.py',
        'fields': {{
          'init_from': '{{instruct}}', 'reward.model': '{{reward}}', 'data.source': 'file:{folder}/rated.jsonl',
          'num_rollouts': 1, 'evaluation.judge': 'vader',
        }},
      }},
    }},
    'compared': ('pretrain', 'instruct', 'policy'),
    'judged_prompts': 8,
    'shown_prompts': 3,
  }}
"""


def road(folder: pathlib.Path, text: str = ROAD) -> pathlib.Path:
  (folder / 'text.txt').write_text(TEXT * 100)
  words = TEXT.split()
  texts = [f'{words[i % 9]} {words[i % 7]} {words[i % 5]} {words[i % 4]}' for i in range(120)]
  lines = (json.dumps({'text': text, 'rating': text.count('o')}) for text in texts)
  (folder / 'rated.jsonl').write_text('\n'.join(lines) + '\n')
  path = folder / 'road.py'
  path.write_text(text.format(folder=folder))
  return path


def test_every_stage_begins_as_the_one_before_and_the_page_shows_all(tmp_path):
  flags = [f'--road={road(tmp_path)}', f'--workdir={tmp_path / "run"}']
  ended = spawn('align', *flags)
  assert ended.code == 0, ended.err
  page, browser = ((tmp_path / 'run' / name).read_text() for name in ('README.md', 'index.html'))
  for name in ('pretrain', 'instruct', 'reward', 'policy'):
    assert f'## {name}' in page and f'<h2>{name}</h2>' in browser
    assert (tmp_path / 'run' / name / 'result.json').exists()
  images = [line.split('](')[1].rstrip(')') for line in page.splitlines() if line.startswith('![')]
  assert len(images) >= 7 and all((tmp_path / 'run' / image).exists() for image in images)
  header = next(line for line in page.splitlines() if line.startswith('| prompt'))
  assert [cell.strip() for cell in header.strip('|').split('|')] == ['prompt', 'pretrain', 'instruct', 'policy']
  assert browser.count('<table>') == 6 and '<img' in browser
  before = (tmp_path / 'run/times.json').read_text()
  again = spawn('align', *flags)
  assert again.code == 0 and again.out.count('is finished') == 4 and 'Resuming' not in again.out
  assert (tmp_path / 'run/times.json').read_text() == before
  road(tmp_path, ROAD.replace("'num_rollouts': 1", "'num_rollouts': 2"))
  changed = spawn('align', *flags)
  assert changed.code == 2 and 'config.num_rollouts is 2 but' in changed.err


@pytest.mark.parametrize(
  ('swap', 'message'),
  [
    (
      ("'reward.model': '{{reward}}'", "'reward.model': '{{judge}}'"),
      "stage policy names 'judge', which does not come before",
    ),
    (("'instruct': {{", "'instructs': {{"), "stage 'instructs' is none of pretrain, instruct, reward, policy"),
    (('def get_road', 'def get_rod'), 'get_road() can not be called'),
  ],
)
def test_bad_roads_end_in_one_line(swap, message, tmp_path, capfd):
  ended = call(capfd, 'align', f'--road={road(tmp_path, ROAD.replace(*swap))}', f'--workdir={tmp_path / "run"}')
  assert ended.code == 2 and message in ended.err and len(ended.err.splitlines()) == 1, ended.err
  assert not (tmp_path / 'run').exists()
