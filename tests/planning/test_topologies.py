"""Clusters by name, and how fast their chips exchange."""

import numpy as np
import pytest

from gpt_jax.planning.topologies import topology
from gpt_jax.types import UserError


def test_names():
  assert topology('v5p:8x8x8').chips == 512
  assert topology('tpu7x:2x2x1').devices_count == 8, 'a chip is two devices'
  assert topology('h100:8').sizes == (1, 8) and topology('h100:16x8').chips == 128


@pytest.mark.parametrize('name', ['v9:2x2', 'v5p', 'v5p:8', 'v5e:4x4x4', 'v5e:0x4', 'h100:2x2x2', 't4:8'])
def test_bad_names_are_told_known_ones(name):
  with pytest.raises(UserError, match=r'--topology=.*(known:|such as) ?.*:') as error:
    topology(name)
  assert '\n' not in str(error.value)


RATES = [
  # Links of 100 GB/s each way: a ring of eight is used both ways, of three axes all at once.
  ('v5p:8x8x8', {'data': 8, 'fsdp': 64}, 'fsdp', 400e9),
  ('v5p:8x8x8', {'data': 8, 'fsdp': 64}, 'data', 200e9),
  ('v5p:8x8x8', {'fsdp': 512}, 'fsdp', 600e9),
  ('v5p:8x8x8', {'fsdp': 128, 'tensor': 4}, 'tensor', 100e9),  # half of a ring is a line
  ('v5e:4x4', {'fsdp': 16}, 'fsdp', 100e9),  # lines of 50 GB/s, as only sixteen make a ring
  ('v5e:16x16', {'fsdp': 256}, 'fsdp', 200e9),
  # Four groups of every fourth chip share a line.
  ('v5e:4x16', {'data': 4, 'fsdp': 4, 'tensor': 4}, 'fsdp', 50e9 / 4),
  ('h100:16x8', {'data': 16, 'tensor': 8}, 'tensor', 450e9),  # inside a node
  ('h100:16x8', {'data': 16, 'tensor': 8}, 'data', 50e9),
]


@pytest.mark.parametrize(('name', 'sizes', 'axis', 'rate'), RATES)
def test_rates_by_hand(name, sizes, axis, rate):
  cluster = topology(name)
  assert cluster.rate(cluster.places(sizes)[axis]) == rate


def test_two_devices_of_a_chip_need_no_link():
  assert topology('tpu7x:2x2x1').rate(np.array([[0, 0, 0], [0, 0, 0]])) == np.inf
