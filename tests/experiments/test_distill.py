"""A small model learns from a large one, from the command line to a model that is used."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import language
from experiments.distill import teacher_outputs
from tests.experiments.program import call
from tests.experiments.test_pretrain import TEXT, losses

DISTILL = 'configs/distill/tiny.py'


def flags(base: pathlib.Path, workdir: pathlib.Path, *others: str) -> list[str]:
  source = f'--config.data.source=file:{base.parent / "text.txt"}'
  return [f'--config={DISTILL}', f'--config.teacher={base}', source, f'--workdir={workdir}', *others]


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ('reverse_kl', 'sequence')]


@pytest.mark.parametrize('kind', ['forward_kl', *SLOW])
def test_a_draft_learns_what_its_teacher_says(base, kind, tmp_path, capfd):
  rows = ['--config.generate.rows=32'] if kind == 'sequence' else []
  ended = call(capfd, 'distill', *flags(base, tmp_path / 'run', f'--config.loss.kind={kind}', *rows))
  assert ended.code == 0, ended.err
  result = json.loads((tmp_path / 'run/result.json').read_text())
  assert losses(tmp_path / 'run')[20] < 0.7 * losses(tmp_path / 'run')[1]
  assert 0 < result['validation_overlap'] <= 1 and result['validation_agreement'] > 0.3
  draft, teacher = language.load(str(tmp_path / 'run')), language.load(str(base))
  assert draft.model.config.vocab_size == teacher.model.config.vocab_size
  assert draft.tokenizer.encode(TEXT).tolist() == teacher.tokenizer.encode(TEXT).tolist()
  written = call(capfd, 'generate', f'--model={tmp_path / "run"}', '--prompt=the quick', '--max_new_tokens=5')
  assert written.code == 0, written.err


def test_what_the_teacher_says_is_in_the_batch(base):
  """In chunks that do not divide the row: the k likeliest of the softmax at a temperature, for every input."""
  teacher = language.load(str(base))
  tokens = jnp.asarray(teacher.tokenizer.encode(TEXT)[None, :24])
  says = teacher_outputs(teacher.model, {'chunk': 5, 'top_k': 4, 'temperature': 2.0})
  found, logprobs = says(teacher.params, {'tokens': tokens, 'weights': jnp.ones(tokens.shape)})
  logits = jax.jit(teacher.model.apply)(teacher.params, tokens[:, :-1])[0]
  expected = jax.lax.top_k(jax.nn.log_softmax(logits / 2.0), 4)
  np.testing.assert_array_equal(found, expected[1])
  np.testing.assert_allclose(logprobs, expected[0], atol=1e-5)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (['--config.teacher='], 'config.teacher is missing'),
    (['--config.loss.kind=forward'], "did you mean 'forward_kl'?"),
    (['--config.loss.kind=sequence'], 'give config.generate.rows'),
    (['--config.loss.top_k=0'], 'top_k must be at least 1'),
    (['--config.model.vocab_size=500'], 'config.model.vocab_size = 500 is not the 28 of the teacher'),
    (['--config.context=100'], 'config.context = 100 exceeds the 64 learned positions'),
  ],
)
def test_bad_input_is_one_line(base, tmp_path, capfd, changes, message):
  ended = call(capfd, 'distill', *flags(base, tmp_path / 'run', *changes))
  assert ended.code == 2, ended
  said = [line for line in ended.err.splitlines() if line.startswith('error: ')]
  assert len(said) == 1 and message in said[0], ended.err
