"""Special tokens and chat templates as transformers has them: the same text, the same numbers, of the same files."""

import json

import pytest

from gpt_jax.data import bpe, tokenizers
from tests.data.test_conventions import CHATML

transformers = pytest.importorskip('transformers')
pytestmark = pytest.mark.parity

INSTRUCT = """
{%- if messages[0]['role'] == 'system' -%}
  {%- set system = '<<SYS>>' + messages[0]['content'] | trim + '<</SYS>> ' -%}
  {%- set turns = messages[1:] -%}
{%- else -%}
  {%- set system = '' -%}
  {%- set turns = messages -%}
{%- endif -%}
{%- for turn in turns %}
  {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('roles must take turns') }}
  {%- endif %}
  {%- if turn['role'] == 'user' %}
    {{- bos_token + '[INST] ' + (system if loop.first else '') + turn['content'].strip() + ' [/INST]' }}
  {%- else %}
    {{- ' ' + turn['content'] + ' ' + eos_token }}
  {%- endif %}
{%- endfor %}
"""
TOOLS = """{% if tools %}
Tools: {{ tools | tojson(indent=2) }}
{% endif %}
{% for m in messages %}
  {% if m.role == 'tool' %}{% continue %}{% endif %}
<|im_start|>{{ m.role | upper }}: {{ m.content | tojson }}
{% if not loop.last %}

{% endif %}
{% endfor %}
{{ '<|im_start|>' if add_generation_prompt else '' }}{{ documents is none }}{{ nothing is defined }}"""
TEMPLATES = {'chatml': CHATML, 'instruct': INSTRUCT, 'tools': TOOLS}
HELLO = {'role': 'user', 'content': ' Hello, <|im_end|> "wörld" &\n<b> '}
ANSWER = {'role': 'assistant', 'content': 'Yes?'}
CONVERSATIONS = {
  'one': [HELLO],
  'two': [HELLO, ANSWER, {'role': 'user', 'content': '123'}],
  'told': [{'role': 'system', 'content': 'Be brief.'}, HELLO, ANSWER],
}
TOOL = {'type': 'function', 'function': {'name': 'weather', 'description': 'of a “place”'}}


@pytest.fixture(scope='module', params=TEMPLATES)
def folder(request, tmp_path_factory):
  """The files of a byte-level vocabulary with a template."""
  inner = bpe.train(['the quick brown fox jumps over the lazy dog'], 300).inner
  inner.add_special_tokens(['<s>', '<|im_start|>', '<|im_end|>'])
  path = tmp_path_factory.mktemp('tokenizer')
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': '<s>', 'eos_token': '<|im_end|>',
    'chat_template': TEMPLATES[request.param],
  }  # fmt: skip
  (path / 'tokenizer.json').write_text(inner.to_str())
  (path / 'tokenizer_config.json').write_text(json.dumps(settings))
  return path


@pytest.mark.parametrize('conversation', CONVERSATIONS)
@pytest.mark.parametrize('prompt', [True, False])
@pytest.mark.parametrize('more', [{}, {'tools': [TOOL]}], ids=['', 'tools'])
def test_a_conversation_is_rendered_and_read_as_theirs(folder, conversation, prompt, more):
  ours, theirs = tokenizers.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
  messages = CONVERSATIONS[conversation]
  text = ours.conventions.chat.render(messages, add_generation_prompt=prompt, **more)
  expected = theirs.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False, **more)
  assert text == expected
  ids = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=True, **more)['input_ids']
  assert ours.encode_special(text).tolist() == ids


def test_saved_by_us_it_is_theirs(folder, tmp_path):
  """The files that stand beside a run or a converted model."""
  tokenizers.save(tokenizers.load(folder), tmp_path)
  before, after = (transformers.AutoTokenizer.from_pretrained(path) for path in (folder, tmp_path))
  text = CONVERSATIONS['two'][0]['content']
  assert after(text).input_ids == before(text).input_ids
  assert (after.chat_template, after.eos_token_id) == (before.chat_template, before.eos_token_id)


def test_a_vocabulary_of_ours_is_opened(tmp_path):
  ours = bpe.train(['the quick brown fox jumps over the lazy dog'], 300)
  tokenizers.save(ours, tmp_path)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert theirs('The quick wörld 123').input_ids == ours.encode('The quick wörld 123').tolist()
  assert theirs.eos_token_id == ours.end_of_text
