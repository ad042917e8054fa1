"""Traces of chosen steps, read back; and counts of what was compiled."""

import gzip
import json

import jax
import jax.numpy as jnp
from toy_run import config, toy

from gpt_jax.training.profile import compilations


def steps_traced(workdir):
  (path,) = (workdir / 'profile').rglob('perfetto_trace.json.gz')
  events = json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
  called = [event['args'] for event in events if event.get('name', '').endswith('Execute (jit_step)')]
  return len({arguments['run_id'] for arguments in called if 'run_id' in arguments})


def test_the_chosen_steps_are_traced_and_no_others(tmp_path, capsys):
  toy(tmp_path, config(num_steps=8, eval_every=0, checkpoint_every=0), profile=(4, 6))
  assert steps_traced(tmp_path) == 3
  assert list((tmp_path / 'profile').rglob('*.xplane.pb')), "TensorBoard's"
  assert f'Traced steps from 4 to 6: {tmp_path}/profile' in capsys.readouterr().out


def test_a_run_that_ends_before_leaves_what_it_has(tmp_path):
  toy(tmp_path, config(num_steps=5, eval_every=0, checkpoint_every=0), profile=(4, 60))
  assert steps_traced(tmp_path) == 2


def test_what_is_compiled_is_counted():
  twice = jax.jit(lambda array: 2 * array + 17.25)
  with compilations() as made:
    twice(jnp.ones(3)), twice(jnp.ones(3))
    first = made.count
    twice(jnp.ones(4))
  assert made.count > first >= 1 and made.seconds > 0
  before = made.count
  twice(jnp.ones(5))
  assert made.count == before, 'it counts no longer'


def test_a_run_says_what_it_compiled(tmp_path):
  toy(tmp_path, config(num_steps=2))
  speed = json.loads((tmp_path / 'result.json').read_text())['speed']
  assert speed['programs'] > 0 and 0 <= speed['programs_kept'] <= speed['programs'] and speed['compile_seconds'] > 0
