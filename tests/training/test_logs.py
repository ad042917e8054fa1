"""Lines, plots and utilisation."""

import json

import jax
import numpy as np
import pytest

from gpt_jax.training import hardware
from gpt_jax.training.logs import keep_lines, read_lines
from gpt_jax.training.plots import _held_out, plot, smoothed
from gpt_jax.types import UserError


def test_lines_after_the_step_are_dropped(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  lines = [{'step': 5, 'loss': 2.0}, {'step': 10, 'loss': 1.0}, {'step': 10, 'validation_loss': 1.5}, {'step': 15}]
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines) + '{"step": 20, "lo')  # torn by a kill
  assert read_lines(tmp_path) == lines
  assert keep_lines(tmp_path, 10) == lines[:3]
  assert path.read_text() == ''.join(json.dumps(line) + '\n' for line in lines[:3])
  assert [file.name for file in tmp_path.iterdir()] == ['metrics.jsonl']


def test_line_that_is_no_json(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\nnonsense\n')
  with pytest.raises(UserError, match=r'metrics\.jsonl has a line that is no JSON'):
    keep_lines(tmp_path, 10)
  assert 'nonsense' in (tmp_path / 'metrics.jsonl').read_text()


def test_smoothed():
  assert smoothed([1.0, 3.0]) == [1.0, 3.0]  # a short curve is left as it is
  values = np.random.default_rng(0).normal(5, 1, 2000)
  curve = np.asarray(smoothed(values.tolist()))
  assert curve[0] == values[0]
  assert np.abs(curve[200:] - 5).max() < 0.5


def test_plots(tmp_path):
  lines = [{'step': step, 'loss': 1.0 / step, 'learning_rate': 0.1, 'grad_norm': 1.0} for step in range(1, 9)]
  plot(tmp_path, [*lines, {'step': 8, 'validation_loss': 0.5}, {'step': 9, 'loss': None}])
  assert _held_out([{'loss': 1.0, 'value_loss': 2.0}, {'validation_loss': 3.0}]) == ['validation_loss']
  names = sorted(path.name for path in (tmp_path / 'plots').iterdir())
  assert names == ['grad_norm.png', 'learning_rate.png', 'loss.png']
  assert all((tmp_path / 'plots' / name).read_bytes().startswith(b'\x89PNG') for name in names)


@pytest.mark.parametrize(
  ('kind', 'peak'),
  [
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA H200', 989e12),
    ('NVIDIA A100-SXM4-40GB', 312e12),
    ('Tesla V100-SXM2-16GB', 125e12),
    ('NVIDIA L4', 121e12),
    ('Tesla T4', 65e12),
    ('TPU v4', 275e12),
    ('TPU v5 lite', 197e12),
    ('TPU v5p', 459e12),
    ('TPU v6 lite', 918e12),
  ],
)
def test_known_chips(monkeypatch, kind, peak):
  device = type('Device', (), {'device_kind': kind})
  monkeypatch.setattr(jax, 'devices', lambda: [device])
  found, source = hardware.peak_flops()
  assert found == peak * 8
  assert kind in source
  # 1,000 tokens a second of a model of 1e12 FLOPs each, by hand.
  assert hardware.utilisation(1000.0, 1e12)['mfu_palm'] == pytest.approx(1e15 / (8 * peak))


def test_a_chip_of_two_devices(monkeypatch):
  """Eight devices are four chips."""
  monkeypatch.setattr(jax, 'devices', lambda: [type('Device', (), {'device_kind': 'TPU7x'})])
  assert hardware.peak_flops()[0] == 4 * 2307e12
  assert hardware.peak_bandwidth()[0] == 4 * 7.38e12


def test_bandwidth_that_decoding_uses(monkeypatch):
  """Fifty steps a second that each read 16 GB, of the 3.35 TB/s of each of eight chips, by hand."""
  monkeypatch.setattr(jax, 'devices', lambda: [type('Device', (), {'device_kind': 'NVIDIA H100 80GB HBM3'})])
  used = hardware.bandwidth_utilisation(50.0, 16e9)
  assert used['mbu'] == pytest.approx(50 * 16e9 / (8 * 3.35e12))
  assert 'H100' in used['bandwidth_source']
  both = hardware.utilisation(1000.0, 1e12, 0.75e12)
  assert both['mfu_causal'] == pytest.approx(0.75 * both['mfu_palm'])


def test_unknown_chip_is_measured():
  peak, source = hardware.peak_flops()
  assert 1e9 < peak < 1e14
  assert source == 'measured float32 matmul'
  peak, source = hardware.peak_bandwidth()
  assert 1e8 < peak < 1e13
  assert source == 'measured float32 sum of arrays'
