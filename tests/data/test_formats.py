"""Rankings from records of every form, and as rows."""

import numpy as np
import pytest

from gpt_jax.data import tokenizers
from gpt_jax.data.conventions import ChatTemplate
from gpt_jax.data.formats import Demonstration, Ranking, demonstrations, encode, prompts, rankings, teach
from gpt_jax.data.ranked import Ranked
from gpt_jax.data.rows import Dataset
from gpt_jax.data.sources import documents, records
from gpt_jax.types import UserError
from tests.data.test_conventions import chat_model


def of(*found: dict, **how) -> list[Ranking]:
  return rankings([(f'record {number}', record) for number, record in enumerate(found)], **how)


def test_forms_by_hand():
  whole = {'prompt': 'p', 'responses': ['a', 'b', 'c'], 'scores': [1, 3, 1]}
  messages = [{'role': 'user', 'content': 'hi'}]
  pair = {'prompt': messages, 'chosen': 'x', 'rejected': 'y', 'other': 1}
  assert of(whole) == [Ranking('p', ('a', 'b', 'c'), (1, 3, 1))]
  assert of(pair) == [Ranking(messages, ('x', 'y'), (1, 0))]
  assert of({'chosen': 'x', 'rejected': 'y'})[0].prompt == ''
  tied = {'responses': ['a', 'b'], 'scores': [2, 2]}
  assert of(whole, tied) == of(whole), 'what ranks nothing is left out'


def test_pairs_are_those_that_do_not_tie():
  pairs = Ranking('p', ('a', 'b', 'c'), (1, 3, 1)).pairs()
  assert [(pair.responses, pair.scores) for pair in pairs] == [(('b', 'a'), (3, 1)), (('b', 'c'), (3, 1))]


def test_rated_texts_are_ranked_once_each_four_to_nine_at_a_time():
  rated = [{'text': f'text {i}', 'rating': i / 10} for i in range(1000)]
  found = of(*rated, seed=3)
  sizes = [len(ranking.responses) for ranking in found]
  assert set(sizes) == set(range(4, 10))
  texts = [text for ranking in found for text in ranking.responses]
  assert len(texts) == len(set(texts)) > 1000 - 9 and set(texts) <= {record['text'] for record in rated}
  assert all(
    f'text {round(10 * score)}' == text for r in found for text, score in zip(r.responses, r.scores, strict=True)
  )
  assert found == of(*rated, seed=3) != of(*rated, seed=4)
  gaps = np.abs(np.diff([score for ranking in found for score in ranking.scores]))
  assert np.mean(gaps) > 20, 'shuffled'
  assert {len(ranking.responses) for ranking in of(*rated, least=2, most=2)} == {2}


@pytest.mark.parametrize(
  ('record', 'message'),
  [
    ({'text': 'x'}, 'record 0: expected "chosen" and "rejected", or as many "scores" as "responses"'),
    ({'text': 3, 'rating': 1.0}, 'record 0: "text" is missing, or no string'),
    ({'text': 'x', 'rating': 'good'}, 'record 0: "rating" = \'good\' is no number'),
    ({'text': 'x', 'rating': float('nan')}, 'record 0: "rating" = nan is no number'),
    ({'chosen': 'x'}, 'record 0: "rejected" is missing, or no string'),
    ({'responses': ['a', 'b'], 'scores': [1]}, 'record 0: expected'),
    ({'responses': ['a', None], 'scores': [1, 2]}, 'record 0: "responses" is missing, or no string'),
    ({'responses': ['a', 'b'], 'scores': [1, True]}, 'record 0: "scores" = True is no number'),
    ({'prompt': 3, 'chosen': 'x', 'rejected': 'y'}, 'record 0: "prompt" must be a string, or a list of messages'),
    ({'prompt': [], 'chosen': 'x', 'rejected': 'y'}, 'record 0: "prompt" must be'),
    ({'prompt': [{'role': 'user'}], 'chosen': 'x', 'rejected': 'y'}, 'record 0: "prompt" must be'),
    ({'responses': ['a', 'b'], 'scores': [1, 1]}, 'the source has no ranking'),
  ],
)
def test_other_records_are_refused_by_their_place(record, message):
  with pytest.raises(UserError) as error:
    of(record)
  assert message in str(error.value)


def test_sizes_that_rank_nothing():
  for least, most in ((1, 4), (5, 4)):
    with pytest.raises(UserError, match='a ranking takes 2 texts or more'):
      of(least=least, most=most)


def test_records_of_files(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('\n'.join(f'{{"text": "t{i}", "rating": {i}}}' for i in range(10)) + '\n\n')
  train, held_out = (records(f'file:{path}', split, 0.2) for split in ('train', 'validation'))
  assert [record['rating'] for _, record in train] == list(range(8)) and len(held_out) == 2
  assert held_out[0][0] == f'{path}, line 9'
  assert len(records(f'file:{path}', 'train', 0)) == 10 and not records(f'file:{path}', 'validation', 0)
  path.write_text('["text"]\n')
  with pytest.raises(UserError, match='line 1: expected an object'):
    records(f'file:{path}')
  with pytest.raises(UserError, match='none of file:PATH'):
    records('x')


def test_tasks_that_can_be_checked():
  train, held_out = (records('gym:chain_sum?size=10&max_terms=2', split, 0.2) for split in ('train', 'validation'))
  assert len(train) == 8 and len(held_out) == 2 and train == records('gym:chain_sum?size=10&max_terms=2', 'train', 0.2)
  assert (
    train[0][1]['prompt'].endswith('=') and str(eval(train[0][1]['metadata']['expression'])) == train[0][1]['answer']
  )
  (text, *_) = documents('gym:chain_sum?size=10&max_terms=2', 'train', 0.2)
  assert text == f'{train[0][1]["prompt"]} {train[0][1]["answer"]}'
  for spec in ('gym:chain_sun', 'gym:chain_sum?sizes=3', 'gym:chain_sum?size', 'gym:chain_sum?size=x'):
    with pytest.raises(UserError, match='could not be made'):
      records(spec)


BYTES = tokenizers.tokenizer('bytes')


def test_rows_by_hand():
  rows = Ranked([Ranking('p', ('ab', 'c'), (1, 0)), Ranking('', ('x', 'longest', 'y'), (2, 3, 2))], BYTES, 5)
  end = [] if BYTES.end_of_text is None else [BYTES.end_of_text]
  assert isinstance(rows, Dataset) and (len(rows), rows.responses, rows.texts, rows.cut) == (2, 3, 5, 1)
  batch = rows.batch(np.array([1, 0, -1]))
  assert batch['tokens'].shape == (3, 3, 5)
  fill = lambda ids: (ids + [0] * 5)[:5]
  expected = [fill([*text.encode(), *end]) for text in ('x', 'longest', 'y', 'pab', 'pc')]
  np.testing.assert_array_equal(batch['tokens'][:2].reshape(6, 5)[:5], expected)
  np.testing.assert_array_equal(batch['weights'], [[1, 1, 1], [1, 1, 0], [0, 0, 0]])
  np.testing.assert_array_equal(batch['scores'][:2], [[2, 3, 2], [1, 0, 0]])
  lengths = batch['layout'].segment.sum(-1)
  np.testing.assert_array_equal(lengths, [[1 + len(end), 5, 1 + len(end)], [3 + len(end), 2 + len(end), 0], [0] * 3])
  np.testing.assert_array_equal(batch['layout'].position[0, 1], range(5))
  assert not batch['tokens'][2].any()


def test_a_prompt_must_leave_room():
  with pytest.raises(UserError, match='prompt 0 has 5 tokens'):
    Ranked([Ranking('12345', ('a', 'b'), (1, 0))], BYTES, 5)
  with pytest.raises(UserError, match='no ranking'):
    Ranked([], BYTES, 5)


class Speaker:
  """Bytes with a chat template and an end of its own."""

  end_of_text = 7

  def __init__(self, chat):
    self.conventions = type('Conventions', (), {'chat': chat, 'ends': (8,), 'begin': ()})()

  def encode(self, text):
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

  encode_special = encode
  vocab_size = 256
  decode_bytes = dump = encode

  def encode_batch(self, texts):
    return [self.encode(text) for text in texts]


def test_prompts_are_texts_or_conversations():
  template = ChatTemplate("{{ messages[0]['content'] }}{% if add_generation_prompt %}>{% endif %}")
  messages = [{'role': 'user', 'content': 'hi'}]
  ranking = Ranking(messages, ('yo', 'no'), (1, 0))
  assert encode(Speaker(template), ranking) == ([*b'hi>'], [[*b'yo', 8], [*b'no', 8]])
  text = Ranking('hi', ('yo', ''), (1, 0))
  assert encode(Speaker(template), text, begin=[1]) == ([1, *b'hi'], [[*b'yo', 7], [7]])
  with pytest.raises(UserError, match='no chat template'):
    encode(Speaker(None), ranking)


def shown(*found: dict) -> list[Demonstration]:
  return demonstrations([(f'record {number}', record) for number, record in enumerate(found)])


def test_demonstrations_by_hand():
  user, said = {'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'yo'}
  assert shown({'messages': [user, said, user]}) == [Demonstration([user], 'yo')]
  assert shown({'messages': [user, said, user, said]}) == [Demonstration([user, said, user], 'yo')]
  assert shown({'prompt': 'p', 'answer': 'a'}) == shown({'prompt': 'p', 'completion': 'a'}) == [Demonstration('p', 'a')]
  assert shown({'prompt': [user], 'answer': 'a'}) == [Demonstration([user], 'a')]
  assert shown({'instruction': 'i', 'input': '', 'output': 'o'}) == [Demonstration('i', 'o')]
  assert shown({'instruction': 'i', 'input': 'x', 'output': 'o'}) == [Demonstration('i\n\nx', 'o')]
  assert shown({'text': 't', 'rating': 3}) == [Demonstration('', 't')]
  asked = [{'prompt': 'p'}, {'messages': [user, said]}, {'text': 't'}, {'prompt': [user]}]
  assert prompts([('', record) for record in asked]) == ['p', [user], 't', [user]]


@pytest.mark.parametrize(
  ('record', 'message'),
  [
    ({'messages': []}, 'record 0: "messages" must be a list of messages'),
    ({'messages': [{'role': 'user', 'content': 'hi'}]}, 'record 0: "messages" has no turn of the assistant'),
    ({'prompt': 'p'}, 'record 0: "answer" is missing, or no string'),
    ({'instruction': 'i'}, 'record 0: "output" is missing, or no string'),
    ({'instruction': 3, 'output': 'o'}, 'record 0: "instruction" is missing, or no string'),
    ({'texts': 't'}, 'record 0: "text" is missing, or no string'),
  ],
)
def test_what_shows_nothing_is_refused_by_its_place(record, message):
  with pytest.raises(UserError) as error:
    shown(record)
  assert message in str(error.value)


def test_every_turn_of_the_assistant_is_taught_token_by_token():
  tokenizer = chat_model()
  turns = [
    ('system', 'be kind'),
    ('user', 'a fox?'),
    ('assistant', 'the fox'),
    ('user', 'and?'),
    ('assistant', 'lazy dog'),
  ]
  messages = [{'role': role, 'content': content} for role, content in turns]
  (demonstration,) = shown({'messages': messages})
  tokens, taught = teach(tokenizer, demonstration)
  text = (
    '<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\na fox?<|im_end|>\n'
    '<|im_start|>assistant\nthe fox<|im_end|>\n'
    '<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\nlazy dog<|im_end|>\n'
  )
  assert list(tokens) == tokenizer.encode_special(text).tolist()
  said = [tokenizer.decode_bytes([token]).decode() for token, is_said in zip(tokens, taught, strict=True) if is_said]
  assert ''.join(said) == 'the fox<|im_end|>lazy dog<|im_end|>'
  first = taught.index(True)
  assert tokenizer.decode_bytes(tokens[:first]).decode().endswith('<|im_start|>assistant\n')
  # What it is taught to say is what it would write: the prompt of `generate`, and what ends it.
  assert list(tokens[:first]) == tokenizer.encode_special(tokenizer.conventions.chat.render(messages[:2])).tolist()


def test_texts_are_taught_with_their_end():
  assert teach(Speaker(None), Demonstration('hi', 'yo'), begin=[1]) == (
    [1, *b'hi', *b'yo', 7],
    [False] * 3 + [True] * 3,
  )
  assert teach(BYTES, Demonstration('', 'yo'))[0][:2] == [*b'yo']
  with pytest.raises(UserError, match='no chat template'):
    teach(Speaker(None), Demonstration([{'role': 'user', 'content': 'hi'}], 'yo'))
  forgetful = ChatTemplate("{{ messages | length }}{{ messages[-1]['content'] }}")
  turns = [{'role': role, 'content': 'x'} for role in ('user', 'assistant', 'user')]
  with pytest.raises(UserError, match='changes what it wrote of earlier turns'):
    teach(Speaker(forgetful), Demonstration(turns, 'yo'))
