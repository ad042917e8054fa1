"""Hygiene of prompts, by hand."""

from gpt_jax.data import curation


def of(*found: dict) -> list:
  return [(f'record {number}', record) for number, record in enumerate(found)]


def said(records) -> list:
  return [record['prompt'] for _, record in records]


def test_a_user_has_no_more_than_the_limit():
  records = of(
    *({'user': name, 'prompt': f'{name}{i}'} for i in range(3) for name in 'ab'), {'prompt': 'c'}, {'prompt': 'd'}
  )
  assert said(curation.at_most_per_user(records, 2)) == ['a0', 'b0', 'a1', 'b1', 'c', 'd']
  assert said(curation.at_most_per_user(records)) == said(records)


def test_users_are_split_whole_and_stay_where_they_are():
  records = of(*({'user': i % 300, 'prompt': str(i)} for i in range(900)))
  train, held_out = curation.split_by_user(records, 0.2, seed=1)
  users = [{record['user'] for _, record in part} for part in (train, held_out)]
  assert not users[0] & users[1] and 40 <= len(users[1]) <= 80 and len(train) + len(held_out) == 900
  fewer = [record for record in records if record[1]['user'] % 2]
  assert {record['user'] for _, record in curation.split_by_user(fewer, 0.2, seed=1)[1]} == {
    u for u in users[1] if u % 2
  }
  assert {record['user'] for _, record in curation.split_by_user(records, 0.2, seed=2)[1]} != users[1]
  alone = of(*({'prompt': str(i)} for i in range(1000)))
  assert 150 <= len(curation.split_by_user(alone, 0.2)[1]) <= 250


def test_one_of_those_that_begin_alike_is_kept():
  texts = ['summarise this: a', 'summarise this: b', 'summarise', 'summarise', 'other']
  records = of(*({'prompt': text} for text in texts))
  assert said(curation.without_shared_beginnings(records, 10)) == ['summarise this: a', 'summarise', 'other']
  assert said(curation.without_shared_beginnings(records, 17)) == [
    'summarise this: a',
    'summarise this: b',
    'summarise',
    'other',
  ]
  turns = of(*({'prompt': [{'role': 'user', 'content': text}]} for text in ('abcd', 'abce', 'x')))
  assert len(curation.without_shared_beginnings(turns, 3)) == 2


def test_lengths_are_limited_and_counted():
  records = of(*({'prompt': 'x' * size} for size in (0, 1, 5, 9)))
  kept, counts = curation.of_length(records, lambda record: len(record['prompt']), least=1, most=5)
  assert said(kept) == ['x', 'xxxxx'] and counts == {'kept': 2, 'too short': 1, 'too long': 1}
  assert len(curation.of_length(records, lambda record: len(record['prompt']))[0]) == 3
