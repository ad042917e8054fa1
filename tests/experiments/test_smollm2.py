"""SmolLM2-135M speaks: from its GGUF file in a package, by the commands."""

import pytest

from tests.experiments.program import call

pytestmark = pytest.mark.assets
MODEL = '--model=asset:smollm2'


def test_it_knows_the_capital_of_france(capfd):
  flags = ['--chat', '--prompt=What is the capital of France?', '--temperature=0', '--max_new_tokens=64']
  ended = call(capfd, 'generate', MODEL, *flags)
  assert ended.out == 'The capital of France is Paris.\n', ended.err


def test_it_keeps_to_what_was_said(capfd):
  ended = call(capfd, 'chat', MODEL, '--temperature=0', stdin='What is the capital of France?\nAnd of Italy?\n')
  assert ended.out == 'The capital of France is Paris.\nThe capital of Italy is Rome.\n', ended.err
