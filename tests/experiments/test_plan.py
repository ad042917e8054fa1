"""What a plan says of a run, against counts by hand and against XLA."""

import dataclasses
import importlib.util

from ml_collections import ConfigDict
import pandas as pd
import pytest

from gpt_jax.models.families import FAMILIES
from gpt_jax.models.flops import SCORES, parts, training_flops
from gpt_jax.planning.compiled import compile_step, refusal, sizes_of
from gpt_jax.planning.programs import Program
from gpt_jax.planning.roofline import Exchange, Figures, Roofline, merged
from gpt_jax.sharding import Placement, make_mesh
from gpt_jax.training.program import device_bytes, named, program
from tests.experiments.program import TINY, call, load

LLAMA, LENGTH = FAMILIES['llama2_70b'], 4096
NEEDS_LIBTPU = pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed')


def test_flops_by_part_by_hand():
  """LLaMA-2 70B: 80 layers 8,192 wide, 64 query heads and 8 key heads of 128, feed-forward of 28,672."""
  found = {name: part.forward for name, part in parts(LLAMA, LENGTH).items()}
  assert found == {
    'unembedding': 2 * 8192 * 32_000,
    'attention projections': 80 * 2 * (2 * 8192 * 8192 + 2 * 8192 * 1024),
    'feed-forward': 80 * 2 * 3 * 8192 * 28_672,
    SCORES: 80 * 2 * 2 * 8192 * LENGTH,
  }
  assert all(part.backward == 2 * part.forward and part.recomputed == 0 for part in parts(LLAMA, LENGTH).values())
  assert parts(LLAMA, LENGTH, causal=True)[SCORES].forward == found[SCORES] * (LENGTH + 1) / (2 * LENGTH)


@pytest.mark.parametrize(
  ('family', 'number'),
  [
    # Published parameters but for norms, and for a table that is only looked up.
    ('llama2_70b', 68_976_648_192 - 161 * 8192 - 32_000 * 8192),
    ('falcon_7b', 6_921_720_704 - 33 * 2 * 4544),
  ],
)
def test_what_is_needed_is_what_utilisation_counts(family, number):
  """6 N + 12 L H Q T."""
  config = FAMILIES[family]
  scores = 12 * config.num_layers * config.num_heads * config.head_width
  assert training_flops(config, LENGTH) == 6 * number + scores * LENGTH
  assert training_flops(config, LENGTH, causal=True) == 6 * number + scores * (LENGTH + 1) / 2


def read(table):
  """The only row of a table."""
  (row,) = pd.read_csv(table).to_dict('records')
  return row


def small(remat, **fields):
  """A config of a plan, of a small model."""
  config = load('plan') and importlib.import_module('configs.pretrain.tiny').get_config()
  config.model.update(
    {'family': 'llama2_7b', 'num_layers': 4, 'vocab_size': 96, 'positions': None, 'mlp': 'swiglu(96)'}
  )
  config.model.update({'remat': remat, 'attention_kernel': 'plain', 'num_kv_heads': 4, 'dtype': 'float32'})
  config.update(ConfigDict(fields))
  return config.to_dict()


def compiled_here(config, sizes):
  """The program of a config's step for the devices of this machine, and its state."""
  plan = load('plan')
  runs = importlib.import_module('experiments.runs')
  of = plan.Case(config, importlib.import_module('gpt_jax.models.parts').from_config(config['model']), None)
  placement = Placement(make_mesh(sizes))
  made = program(config, *runs.objective(config, of.model), placement)
  with named(placement.mesh):
    return of.model, made.state, compile_step(made.step, made.state, plan.batch_shapes(of, placement))


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_flops_are_those_of_the_compiled_step(remat):
  """The very products that XLA makes, forward, backward and again, of one device's rows."""
  config = small(remat)
  model, _, done = compiled_here(config, {'fsdp': 8})
  tokens = config['batch_size'] * config['context'] / 8
  counted = sum(part.needed + part.recomputed for part in parts(model, config['context']).values())
  assert Program(done.as_text()).product_flops() == pytest.approx(tokens * counted, rel=1e-6)


@pytest.mark.parametrize('sizes', [{'fsdp': 8}, {'data': 2, 'fsdp': 2, 'tensor': 2}])
def test_state_bytes_are_the_arguments_of_the_compiled_step(sizes):
  """Parameters and both moments of one device; beside them a batch of tokens and weights, and the random key."""
  config = small('none')
  _, state, done = compiled_here(config, sizes)
  rows = 8 / (sizes.get('data', 1) * sizes['fsdp'])
  others = rows * (config['context'] + 1) * 8 + 8
  assert done.memory_analysis().argument_size_in_bytes == pytest.approx(device_bytes(state) + others, abs=64)


def test_times_and_bounds():
  exchanges = merged([Exchange('all-gather', 8, 2, 4e9, 0.5), Exchange('all-gather', 8, 1, 2e9, 0.25)])
  assert exchanges == (Exchange('all-gather', 8, 3, 6e9, 0.75),)
  figures = Figures('formulas', 1.0, 0.5, 2.0, 3.0, products=1.5e12, kernels=0.5e12, read=1e9, exchanges=exchanges)
  line = Roofline(figures.times(1e12, 1e9))
  assert dict(line.times) == {'compute': 2.0, 'memory': 1.0, 'interconnect': 0.75}
  assert (line.bound, line.overlapped, line.in_turn) == ('compute', 2.0, 2.75)
  assert figures.fits and not dataclasses.replace(figures, peak=4.0).fits
  assert not dataclasses.replace(figures, refusal='too much').fits


def test_what_does_not_fit_has_its_sizes():
  message = 'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 278.41G of 15.75G hbm.\nmore'
  assert sizes_of(message) == (278.41 * 2**30, 15.75 * 2**30)
  assert refusal(message) == 'Ran out of memory in memory space hbm. Used 278.41G of 15.75G hbm.'
  assert sizes_of('INTERNAL: 1G of 2G') == (0.0, 0.0)


def test_an_estimate(capfd, tmp_path):
  """Of a model of 175B on GPUs, for which nothing is compiled: its state is an exact 12 bytes a parameter."""
  table = tmp_path / 'table.csv'
  flags = ['--config=configs/pretrain/gpt3.py:175b', f'--table={table}']
  ended = call(capfd, 'plan', *flags, '--topology=h100:64x8', '--config.mesh.fsdp=128', '--config.mesh.tensor=4')
  assert ended.code == 0, ended.err
  assert 'Figures: formulas' in ended.out and '174,' in ended.out
  facts = read(table)
  assert facts['state_gib'] * 2**30 * 512 == pytest.approx(12 * facts['parameters'], rel=0.05)
  assert 0.3 < facts['mfu_palm_in_turn'] < facts['mfu_palm'] < 0.82 and facts['mfu_causal'] < facts['mfu_palm']
  assert facts['fits']
  table.write_text('another\n1\n')
  ended = call(capfd, 'plan', f'--config={TINY}', '--topology=h100:8', f'--table={table}')
  assert ended.code == 2 and 'is a table of other columns' in ended.err


def test_a_search_names_what_fits(capfd):
  flags = ['--config=configs/pretrain/llama2_7b.py', '--topology=h100:2x8', '--search', '--config.batch_size=64']
  ended = call(capfd, 'plan', *flags)
  assert ended.code == 0, ended.err
  table = ended.out.split('parameters')[0]
  assert 'fsdp 16' in table and 'dots' in table and ' yes ' in table and ' no ' in table
  ended = call(capfd, 'plan', *flags[:-1], '--topology=h100:1', '--config.mesh.fsdp=1')
  assert ended.code == 2 and 'nothing that was tried fits h100:1: take more chips' in ended.err


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--topology=v9:2x2'], '--topology=v9:2x2 is unknown; known: v5e:2x2'),
    ([], '--topology is missing'),
    (['--topology=h100:3'], 'config.batch_size = 8 in 1 microbatches does not divide over data x fsdp = 3 devices'),
    (
      ['--topology=h100:8', '--config.batch_ramp.first_rows=2', '--config.batch_ramp.ramp_tokens=1000'],
      'config.batch_ramp.first_rows = 2 in 1 microbatches does not divide over data x fsdp = 8 devices of h100:8',
    ),
    (['--topology=h100:8', '--config.mesh.fsdp=3'], 'mesh sizes data=-1 x fsdp=3 do not multiply to the 8 devices'),
    (['--topology=h100:8', '--config.context=128'], 'config.context = 128 exceeds the 64 learned positions'),
  ],
)
def test_bad_input(capfd, flags, message):
  ended = call(capfd, 'plan', f'--config={TINY}', *flags)
  assert ended.code == 2 and message in ended.err and ended.err.count('\n') == 1


@NEEDS_LIBTPU
def test_a_step_is_compiled_for_tpus(capfd, tmp_path):
  """Four chips of a v5e: splash attention among what is compiled, memory by XLA, and what does not fit is a result."""
  table = tmp_path / 'table.csv'
  flags = [f'--config={TINY}', '--topology=v5e:2x2', '--config.mesh.data=1', '--config.mesh.fsdp=4', f'--table={table}']
  flags += ['--config.context=128', '--config.model.positions=learned(128)', '--config.model.vocab_size=128']
  ended = call(capfd, 'plan', *flags, '--config.model.dtype=bfloat16')
  assert ended.code == 0, ended.err
  facts = read(table)
  assert facts['figures'] == 'compiled' and facts['attention'] == 'splash' and facts['fits']
  assert 0 < facts['state_gib'] < facts['peak_gib'] + 0.01 and facts['interconnect_seconds'] > 0
  assert 'all-gather' in ended.out or 'all-reduce' in ended.out
  long = ['--config.context=1024', '--config.model.positions=learned(1024)', '--config.model.attention_kernel=chunked']
  chunked = call(capfd, 'plan', *flags, *long)  # how many chunks a piece of a row is compared with depends on the piece
  assert chunked.code == 0 and 'Figures: compiled, FLOPs by formulas.' in chunked.out, chunked.err
  large = ['--config=configs/pretrain/gpt3.py:1_3b', '--topology=v5e:2x2', '--config.mesh.fsdp=4']
  ended = call(capfd, 'plan', *large, '--config.model.remat=none')
  assert ended.code == 0 and 'it DOES NOT FIT (the compiler: Ran out of memory' in ended.out
