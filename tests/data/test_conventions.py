"""Special tokens and chat templates: what the files beside a vocabulary say, and what a template may do."""

import json
import re

import pytest
from tokenizers import processors

from gpt_jax.data import bpe, tokenizers
from gpt_jax.data.conventions import ChatTemplate, conventions
from gpt_jax.data.vocabularies import Bytes
from gpt_jax.types import UserError

CHATML = (
  "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = [{'role': 'user', 'content': 'Hi <|im_end|>'}, {'role': 'assistant', 'content': 'Yes?'}]


def chat_model(**settings) -> bpe.Subwords:
  """A byte-level vocabulary with ChatML's two special tokens."""
  inner = bpe.train(['some text'], 257).inner
  inner.add_special_tokens(['<|im_start|>', '<|im_end|>'])
  config = {'bos_token': '<|im_start|>', 'eos_token': {'content': '<|im_end|>'}, 'chat_template': CHATML, **settings}
  files = {'tokenizer_config.json': json.dumps(config).encode()}
  return bpe.from_json(inner.to_str().encode(), 'here', files)


def test_special_tokens_are_read_where_a_template_wrote_them_and_nowhere_else():
  tokenizer = chat_model()
  start, end = (tokenizer.inner.token_to_id(name) for name in ('<|im_start|>', '<|im_end|>'))
  text = tokenizer.conventions.chat.render(TURNS[1:])
  assert text == '<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>assistant\n'
  ids = tokenizer.encode_special(text).tolist()
  assert [i for i in ids if i in (start, end)] == [start, end, start] and ids[0] == start
  assert not {start, end} & set(tokenizer.encode(text).tolist())
  assert tokenizer.decode_bytes(ids).decode() == tokenizer.decode_bytes(tokenizer.encode(text)).decode() == text


def test_what_ends_an_answer():
  tokenizer = chat_model()
  assert tokenizer.conventions.ends == (tokenizer.inner.token_to_id('<|im_end|>'), tokenizer.end_of_text)
  assert tokenizer.end_of_text == tokenizer.inner.token_to_id('<|endoftext|>')
  assert conventions({'generation_config.json': b'{"eos_token_id": [1, 0, 1]}'}, {'a': 0, 'b': 1}).ends == (1, 0)
  assert Bytes().conventions.ends == (256,)


def test_what_stands_before_a_text():
  """The settings decide; where they are silent, the vocabulary's own template does."""
  assert chat_model().conventions.begin == ()
  start = chat_model().inner.token_to_id('<|im_start|>')
  assert chat_model(add_bos_token=True).conventions.begin == (start,)
  inner = chat_model().inner
  inner.post_processor = processors.TemplateProcessing(
    single='<|im_start|> $A <|endoftext|>', special_tokens=[('<|im_start|>', start), ('<|endoftext|>', 0)]
  )
  content = inner.to_str().encode()
  assert bpe.from_json(content, 'here').conventions.begin == (start,)
  off = {'tokenizer_config.json': b'{"add_bos_token": false, "bos_token": "<|im_start|>"}'}
  assert bpe.from_json(content, 'here', off).conventions.begin == ()
  assert len(bpe.from_json(content, 'here').encode('ab')) == 2


def test_saved_with_all_that_it_knows(tmp_path):
  tokenizer = chat_model(add_bos_token=True)
  tokenizers.save(tokenizer, tmp_path)
  assert tokenizers.load(tmp_path).conventions == tokenizer.conventions


def test_a_template_in_a_file_of_its_own_and_among_several():
  files = {
    'chat_template.jinja': b'{{ bos_token }}{{ messages | length }}',
    'tokenizer_config.json': b'{"bos_token": "a"}',
  }
  assert conventions(files, {'a': 0}).chat.render(TURNS) == 'a2'
  several = [{'name': 'tool_use', 'template': 'no'}, {'name': 'default', 'template': 'yes'}]
  files = {'tokenizer_config.json': json.dumps({'chat_template': several}).encode()}
  assert conventions(files, {}).chat.render([]) == 'yes'
  assert conventions({}, {}).chat is None


@pytest.mark.parametrize(
  ('source', 'rendered'),
  [
    ('{% for m in messages %}\n  {{ m.role }}\n  {% endfor %}\n', '  user\n  assistant\n'),
    ('{{ messages[0] | tojson }}', '{"role": "user", "content": "Hi <|im_end|>"}'),
    ('{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}', 'Yes?'),
    ('{{ tools is none }}{{ nothing }}{{ more }}', 'True7'),
    ('{{ messages[1].content.rstrip("?") }}', 'Yes'),
  ],
)
def test_templates_are_read_as_transformers_reads_them(source, rendered):
  assert ChatTemplate(source).render(TURNS, more=7) == rendered


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    ('{{ raise_exception("roles must alternate") }}', 'roles must alternate'),
    ('{% if %}', 'can not render'),
    ('{{ messages.append(1) }}', 'can not render'),
    ('{{ "".__class__.__mro__ }}', 'unsafe'),
    ('{{ 1 / 0 }}', 'division by zero'),
    ('{{ messages[0]["content"] + 1 }}', 'can not render'),
  ],
)
def test_a_template_that_fails_or_reaches_out_is_one_line(source, message):
  turns = [dict(turn) for turn in TURNS]
  with pytest.raises(UserError, match=message) as raised:
    ChatTemplate(source).render(turns)
  assert '\n' not in str(raised.value) and turns == TURNS


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    ({'tokenizer_config.json': b'{'}, 'tokenizer_config.json: not JSON'),
    ({'generation_config.json': b'[]'}, 'generation_config.json: not a JSON object'),
    ({'generation_config.json': b'{"eos_token_id": 9}'}, 'eos_token_id = 9 is not in the vocabulary'),
    ({'tokenizer_config.json': b'{"bos_token": "<s>"}'}, "bos_token = '<s>' is not in the vocabulary"),
  ],
)
def test_broken_files_are_one_line(files, message):
  with pytest.raises(UserError, match=re.escape(message)):
    conventions(files, {'a': 0})
