"""SmolLM2 as `convert` writes it, opened by transformers: the perplexity that it finds is that of `evaluate`."""

import json
import math

import pytest

from gpt_jax.data import assets
from tests.experiments.program import call

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
pytestmark = [pytest.mark.parity, pytest.mark.assets]


def test_perplexity_of_emma(tmp_path, capfd):
  assert call(capfd, 'convert', '--source=asset:smollm2', f'--target={tmp_path}/smollm2').code == 0
  (emma,) = assets.asset('gutenberg').rglob('austen-emma.txt')
  flags = [f'--source=file:{emma}', '--split=train', '--held_out=0', '--num_tokens=512']
  ended = call(capfd, 'evaluate', '--model=asset:smollm2', *flags)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'smollm2')
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'smollm2').eval()
  tokens = torch.tensor([tokenizer(emma.read_text()[:10_000]).input_ids[:513]])
  with torch.no_grad():
    theirs = math.exp(model(tokens, labels=tokens).loss.item())
  assert json.loads(ended.out)['perplexity'] == pytest.approx(theirs, rel=1e-3), ended.err
