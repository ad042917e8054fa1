"""Pages of made-up runs whose answer is known."""

import dataclasses
import json
import pathlib
import re

from matplotlib.backends.backend_agg import FigureCanvasAgg
import numpy as np
import pandas as pd
import pytest

from gpt_jax.evaluation import figures, pages
from gpt_jax.evaluation.findings import Results, findings, verdict

LOSS = 'validation_loss'


def results(tmp_path: pathlib.Path, expect: list[dict], gap: float = 0.5, **spec) -> Results:
  """Three parts over two depths and five seeds: `b` is `gap` below `a`, `c` is `a` but for noise."""
  rng, rows, folders = np.random.default_rng(0), [], {}
  for seed in range(5):
    for depth in (2, 4):
      for part, mean in (('a', 4.0), ('b', 4.0 - gap), ('c', 4.0)):
        point = f'{seed}{depth}{part}'
        loss = mean - 0.1 * depth + 0.01 * rng.standard_normal()
        rows.append((point, depth, part, seed, 'finished', loss, 1e3 * depth))
        folders[point] = tmp_path / point
        folders[point].mkdir()
        lines = [json.dumps({'step': step, 'tokens': 10 * step, 'loss': 5 - step / 10}) for step in (1, 2, 3)]
        (folders[point] / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
        (folders[point] / 'config.json').write_text('{"versions": {"jax": "0"}}')
  columns = ['point', 'model.num_layers', 'model.part', 'seed', 'status', LOSS, 'speed.tokens_per_second']
  spec = {
    'claim': 'b is lower.', 'source': 'nobody', 'baseline': {'model.part': 'a'}, 'metrics': {LOSS: 'loss (nats)'},
    'x': None, 'x_label': None, 'columns': None, 'fit': False, 'frontier': (), 'curves': {}, 'summary': {},
    'threads': 1, 'expect': expect, **spec,
  }  # fmt: skip
  return Results('trial', spec, pd.DataFrame(rows, columns=columns), columns[1:3], folders)


def expectation(of: str, relation: str, **more) -> dict:
  return {'metric': LOSS, 'of': {'model.part': of}, 'than': {'model.part': 'a'}, 'is': relation, **more}


@pytest.mark.parametrize(
  ('expected', 'answer'),
  [
    (expectation('b', 'lower'), 'held'),
    (expectation('b', 'higher'), 'contradicted'),
    (expectation('c', 'lower'), 'not shown'),
    (expectation('c', 'alike', margin=0.05), 'held'),
    (expectation('b', 'alike', margin=0.05), 'contradicted'),
    (expectation('c', 'alike', margin=0.001), 'not shown'),
  ],
)
def test_verdicts(tmp_path, expected, answer):
  found = findings(results(tmp_path, [expected]))
  assert [finding.verdict for finding in found] == [answer] * 2, 'one for each depth'
  assert verdict(found) == answer


def test_one_part_of_a_claim_that_fails_fails_it(tmp_path):
  found = findings(results(tmp_path, [expectation('b', 'lower'), expectation('c', 'lower')]))
  assert verdict(found) == 'not shown'


def test_an_expectation_may_be_of_some_settings(tmp_path):
  (finding,) = findings(results(tmp_path, [expectation('b', 'lower', where={'model.num_layers': 4})]))
  assert 'num layers 4' in finding.text and 'num layers 2' not in finding.text


def test_a_straight_line_and_a_bent_one(tmp_path):
  made = results(tmp_path, [{'is': 'straight', 'margin': 0.01}], x='flops', fit=True)
  made.table['flops'] = 10.0 ** np.tile(np.arange(6), 5)
  made.table[LOSS] = 3 * made.table['flops'] ** -0.05
  assert [finding.verdict for finding in findings(made)] == ['held']
  made.table[LOSS] += 0.1 * (np.log10(made.table['flops']) - 2.5) ** 2
  assert [finding.verdict for finding in findings(made)] == ['contradicted']


def test_a_page_says_what_its_table_says(tmp_path):
  made = results(tmp_path, [expectation('b', 'lower')])
  again = made.table.assign(seed=made.table['seed'] + 5)
  answer = pages.write(tmp_path / 'docs', made, 'python -m experiments.sweep', again)
  text = (tmp_path / 'docs/trial/README.md').read_text()
  assert answer == 'held' and '**The claim held here**' in text and 'python -m experiments.sweep' in text
  saved = pd.read_csv(tmp_path / 'docs/trial/table.csv')
  assert (
    'speed.tokens_per_second' not in saved
    and 'speed.tokens_per_second' in (tmp_path / 'docs/trial/times.csv').read_text()
  )
  deep = saved[saved['model.num_layers'] == 4]
  of, than = (deep[deep['model.part'] == part][LOSS].mean() for part in 'ba')
  assert f'{of:.4g} against {than:.4g}, difference {of - than:+.3g}' in text
  assert '6 of 6 fell there' in text, 'the same runs again'
  for picture in re.findall(r'!\[.*\]\((.*)\)', text):
    assert (tmp_path / 'docs/trial' / picture).read_bytes()[:4] == b'\x89PNG'
  index = (tmp_path / 'docs/README.md').read_text()
  assert '[trial](trial/README.md)' in index and 'b is lower.' in index and 'held' in index


def test_a_figure_names_settings_as_they_were_given(tmp_path):
  made = results(tmp_path, [expectation('b', 'lower')])
  axes = pages.drawn(made)[LOSS].axes[0]
  assert [text.get_text() for text in axes.get_yticklabels()][:2] == ['num layers 2, part a', 'num layers 2, part b']


@pytest.mark.parametrize(
  'spec',
  [
    {'x': 'model.num_layers'},
    {'columns': {'label': 'at', 'metric': 'loss', 'at': {1: LOSS, 2: LOSS}}},
  ],
)
def test_other_figures_are_drawn(tmp_path, spec):
  made = results(tmp_path, [expectation('b', 'lower')], **spec)
  assert {'validation_loss', 'curves'} <= set(pages.drawn(made))


def test_evaluations_over_steps_and_numbers_for_a_summary(tmp_path):
  """Of a policy: its curves are of what was measured now and then, in place of its loss."""
  of, metric = {'model.num_layers': 4, 'model.part': 'b'}, 'held_out_reward'
  wanted = {'deep_b': {'metric': LOSS, 'of': of}}
  made = results(tmp_path, [expectation('b', 'lower')], curves={metric: 'reward'}, summary=wanted)
  for folder in made.folders.values():
    lines = [{'step': step, metric: step**2} if step % 2 else {'step': step, 'loss': 1.0} for step in range(6)]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  made.table[metric] = np.arange(30.0)
  drawn = pages.drawn(dataclasses.replace(made, spec={**made.spec, 'frontier': (metric, LOSS)}))
  assert 'curves' not in drawn
  means = [line.get_xydata()[0] for line in drawn['frontier'].axes[0].lines[1::2]]
  wanted_means = made.table.groupby(list(made.fields), sort=False)[[metric, LOSS]].mean().to_numpy()
  np.testing.assert_allclose(means, wanted_means)
  axes = drawn['held_out_reward_over_steps'].axes[0]
  np.testing.assert_allclose(axes.lines[0].get_xydata(), [[1, 1], [3, 9], [5, 25]])
  assert axes.get_ylabel() == 'reward' and axes.get_xlabel() == 'updates'
  pages.write(tmp_path / 'docs', made, 'python -m experiments.sweep')
  table = made.table
  deep = table[(table['model.num_layers'] == 4) & (table['model.part'] == 'b')][LOSS].mean()
  found = json.loads((tmp_path / 'docs/trial/summary.json').read_text())
  assert found == {'seeds': 5, 'deep_b': deep}


def test_a_legend_lies_within_its_figure():
  names = [f'num layers {n}, model dim 128, mlp swiglu(344), num steps 210' for n in range(8)]
  figure = figures.curves({name: {0: [(0.0, 5.0), (9.0, 4.0)]} for name in names})
  FigureCanvasAgg(figure).draw()
  box = figure.legends[0].get_window_extent()
  assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0


def test_a_setting_at_one_place_has_its_interval_drawn():
  """Twelve settings, each with a cost of its own and two seeds: bars from the low to the high seed, no two alike."""
  rows = [(f'p{n}', 10.0 + n, 'finished', n + seed) for n in range(12) for seed in (0.0, 0.5)]
  table = pd.DataFrame(rows, columns=['model.part', 'cost', 'status', LOSS])
  (axes,) = figures.lines(table, ['model.part'], 'cost', 'cost', LOSS, 'loss').axes
  assert len(axes.containers) == 12
  for number, bar in enumerate(axes.containers):
    ((x, low), (_, high)) = bar.lines[2][0].get_segments()[0]
    assert x == 10 + number and number <= low < high <= number + 0.5
  drawn = [(line.get_color(), line.get_linestyle()) for line in axes.lines if line.get_label().startswith('part')]
  assert len(set(drawn)) == len(drawn) == 12
