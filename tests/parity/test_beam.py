"""Beam search against transformers' own, on small random models: the same texts in the same order, the same scores."""

import functools
import itertools

import numpy as np
import pytest

from gpt_jax.decoding.beam import beam_search
from gpt_jax.interop import huggingface
from tests.parity.test_huggingface import GPT, LLAMA, original

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
pytestmark = pytest.mark.parity

PROMPTS = ([3, 1, 4, 1, 5, 9, 2, 6, 5], [7], [60, 2, 8, 18, 28])
NEW, BEAMS = 24, 4
STOPS = ('none', 'one', 'many')


@pytest.fixture(scope='module', params=[('GPT2', GPT), ('Llama', LLAMA)], ids=['gpt2', 'llama'])
def pair(request, tmp_path_factory):
  """A model of transformers, and ours from the folder it saved."""
  folder = tmp_path_factory.mktemp('model')
  model = original(*request.param)
  with torch.no_grad():  # from nearly even odds to preferences
    for parameter in model.parameters():
      parameter.mul_(1.5)
  model.save_pretrained(folder)
  return model, huggingface.read(folder).load(stacked=False)


@pytest.fixture(scope='module')
def stops(pair):
  """Of tokens that the model likes to write, and others: texts that end, early and late."""
  texts = [beam.tokens.tolist() for (beam,) in beam_search(*pair[1], PROMPTS, max_new_tokens=NEW, num_beams=BEAMS)]
  return {'none': (), 'one': (texts[1][6],), 'many': (texts[0][12], texts[2][3], *range(5, 67, 6))}


def theirs(model, prompts, stop_ids, max_new_tokens=NEW, num_beams=BEAMS, **how):
  """(new tokens, score) of the texts of each prompt, from one batch padded on the left."""
  length = max(map(len, prompts))
  tokens = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts])
  mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
  with torch.no_grad():
    result = model.generate(
      tokens, attention_mask=mask, max_new_tokens=max_new_tokens, num_beams=num_beams, num_return_sequences=num_beams,
      do_sample=False, eos_token_id=list(stop_ids) or None, pad_token_id=0, output_scores=True,
      return_dict_in_generate=True, **how,
    )  # fmt: skip
  rows = []
  for sequence, score in zip(result.sequences[:, length:].tolist(), result.sequences_scores.tolist(), strict=True):
    end = next((place + 1 for place, token in enumerate(sequence) if token in stop_ids), max_new_tokens)
    rows.append((sequence[:end], score))
  return [rows[first : first + num_beams] for first in range(0, len(rows), num_beams)]


def check(ours, model, prompts, stop_ids, **how):
  for mine, wanted in zip(ours, theirs(model, prompts, stop_ids, **how), strict=True):
    assert [beam.tokens.tolist() for beam in mine] == [tokens for tokens, _ in wanted]
    np.testing.assert_allclose([beam.score for beam in mine], [score for _, score in wanted], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('early_stopping', [False, True, 'never'])
@pytest.mark.parametrize('length_penalty', [-1.0, 0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize('name', STOPS)
def test_texts_and_scores_are_theirs(pair, stops, name, length_penalty, early_stopping):
  model, (ours, params) = pair
  how = {'length_penalty': length_penalty, 'early_stopping': early_stopping}
  found = beam_search(
    ours, params, PROMPTS, max_new_tokens=NEW, num_beams=BEAMS, num_return_sequences=BEAMS, stop_ids=stops[name],
    **how,
  )  # fmt: skip
  check(found, model, PROMPTS, stops[name], **how)


def test_processed_logits_are_theirs_if_they_normalise(pair, stops):
  """As masked ones are: what they do before the processors, to take log p, then makes no difference."""
  model, (ours, params) = pair
  found = beam_search(
    ours, params, PROMPTS, max_new_tokens=NEW, num_beams=BEAMS, num_return_sequences=BEAMS, stop_ids=stops['many'],
    processors=(without_even_tokens,),
  )  # fmt: skip
  suppressed = {'suppress_tokens': list(range(0, 67, 2)), 'renormalize_logits': True}
  check(found, model, PROMPTS, stops['many'], **suppressed)


def without_even_tokens(logits, seen):
  del seen
  return logits.at[:, ::2].set(-np.inf)


def test_the_searches_differ(pair, stops):
  """Otherwise the settings would not have been compared."""
  _, (ours, params) = pair
  run = functools.partial(beam_search, ours, params, PROMPTS, max_new_tokens=NEW, num_beams=BEAMS)
  texts = {
    tuple(tuple(beam.tokens.tolist()) for (beam,) in run(stop_ids=ids, length_penalty=penalty, early_stopping=early))
    for ids, penalty, early in itertools.product(stops.values(), (-1.0, 1.0, 2.0), (False, True, 'never'))
  }
  assert len(texts) >= 6
