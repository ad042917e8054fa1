"""A model of other hands, from its folder: it writes, answers, is evaluated and written again."""

import functools
import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from experiments import language
from gpt_jax.data import tokenizers
from gpt_jax.decoding.beam import beam_search
from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.interop import huggingface
from gpt_jax.interop.pretrained import pretrained
from tests.experiments import speaker
from tests.experiments.program import TINY, call
from tests.experiments.speaker import CONTEXT, TEXT


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  return speaker.save(tmp_path_factory.mktemp('speaker') / 'model')


@pytest.fixture(scope='module')
def model(folder):
  return huggingface.read(folder).load(stacked=False)


@pytest.fixture(scope='module')
def tokenizer(folder):
  return tokenizers.load(folder)


def answer(model, tokenizer, ids, number=12) -> str:
  """The greedy text that follows some tokens."""
  (found,) = generate(
    *model, [ids], max_new_tokens=number, sampling=Sampling(temperature=0), stop_ids=tokenizer.conventions.ends
  )
  return tokenizers.decode(tokenizer, [i for i in found.tokens.tolist() if i not in tokenizer.conventions.ends])


def rendered(tokenizer, *said: str) -> list[int]:
  """Turns by turns, user first, and what comes before an answer."""
  roles = ('user', 'assistant')
  turns = [{'role': roles[place % 2], 'content': text} for place, text in enumerate(said)]
  return tokenizer.encode_special(tokenizer.conventions.chat.render(turns)).tolist()


GREEDY = ('--temperature=0', '--max_new_tokens=12')


def test_a_prompt_is_read_behind_the_token_that_begins_a_text(folder, model, tokenizer, capfd):
  (begin,) = tokenizer.conventions.begin
  expected = answer(model, tokenizer, [begin, *tokenizer.encode('the quick').tolist()])
  ended = call(capfd, 'generate', f'--model={folder}', '--prompt=the quick', *GREEDY)
  assert (ended.code, ended.out) == (0, f'the quick{expected}\n'), ended.err
  assert expected != answer(model, tokenizer, tokenizer.encode('the quick').tolist()), 'the token makes no difference'
  written = call(capfd, 'generate', f'--model={folder}', '--prompt=<s>the quick', *GREEDY)
  assert written.out == f'<s>the quick{expected}\n', 'it must not stand there twice'


def test_a_question_is_asked_by_the_template_and_the_answer_alone_is_shown(folder, model, tokenizer, capfd):
  expected = answer(model, tokenizer, rendered(tokenizer, 'who?'))
  ended = call(capfd, 'generate', f'--model={folder}', '--chat', '--prompt=who?', *GREEDY)
  assert (ended.code, ended.out) == (0, f'{expected}\n'), ended.err


@pytest.mark.parametrize('chat', [pytest.param(False, marks=pytest.mark.slow), True])
def test_many_prompts_from_a_file_to_a_file(folder, model, tokenizer, chat, tmp_path, capfd):
  prompts = ['the', 'a quick brown fox jumps', 'dog; ' * 6, 'x', 'over']
  (tmp_path / 'in.jsonl').write_text(
    ''.join(json.dumps({'prompt': p, 'id': i}) + '\n\n' for i, p in enumerate(prompts))
  )
  ids = rendered if chat else lambda t, p: [*t.conventions.begin, *t.encode(p).tolist()]
  for size in (2, 5):
    out = tmp_path / f'{size}.jsonl'
    flags = [f'--prompts={tmp_path}/in.jsonl', f'--out={out}', f'--batch_size={size}', f'--{"" if chat else "no"}chat']
    ended = call(capfd, 'generate', f'--model={folder}', *flags, *GREEDY)
    assert (ended.code, ended.out) == (0, ''), ended.err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line['id'], line['prompt']) for line in lines] == list(enumerate(prompts))
    assert [line['completion'] for line in lines] == [answer(model, tokenizer, ids(tokenizer, p)) for p in prompts]


@pytest.mark.parametrize('draft', ['lookup', 'layers:1', 'bigrams:file:{text}', '{folder}'])
def test_a_draft_leaves_the_text_as_it_was(draft, folder, model, tokenizer, tmp_path, capfd):
  (tmp_path / 'text.txt').write_text(TEXT)
  expected = answer(model, tokenizer, rendered(tokenizer, 'who?'))
  named = draft.format(text=tmp_path / 'text.txt', folder=folder)
  flags = [f'--draft={named}', '--num_speculative_tokens=2', '--chat', '--prompt=who?']
  ended = call(capfd, 'generate', f'--model={folder}', *flags, *GREEDY)
  assert (ended.code, ended.out) == (0, f'{expected}\n'), ended.err
  speed, kept = re.search(r'\((.*) tokens a step; of the candidates weighed (.*)% were kept\)', ended.err).groups()
  assert float(speed) >= 1 and (kept == '100') == (draft == '{folder}')


def test_samples_of_a_prompt_are_lines_of_their_own(folder, tmp_path, capfd):
  (tmp_path / 'in.jsonl').write_text('{"prompt": "the", "id": 0}\n{"prompt": "dog", "id": 1}\n')
  flags = [f'--prompts={tmp_path}/in.jsonl', f'--out={tmp_path}/out.jsonl', '--num_samples=3', '--max_new_tokens=9']
  assert call(capfd, 'generate', f'--model={folder}', *flags, '--min_p=0.01', '--repetition_penalty=1.2').code == 0
  lines = [json.loads(line) for line in (tmp_path / 'out.jsonl').read_text().splitlines()]
  assert [line['id'] for line in lines] == [0, 0, 0, 1, 1, 1]
  assert len({line['completion'] for line in lines}) == 6


def test_draws_do_not_depend_on_the_batch(folder, tmp_path, capfd):
  (tmp_path / 'in.jsonl').write_text('{"prompt": "the"}\n' * 3)
  found = []
  for size in (1, 3):
    flags = [f'--prompts={tmp_path}/in.jsonl', f'--out={tmp_path}/out.jsonl', f'--batch_size={size}']
    assert call(capfd, 'generate', f'--model={folder}', *flags, '--max_new_tokens=9').code == 0
    found.append([json.loads(line)['completion'] for line in (tmp_path / 'out.jsonl').read_text().splitlines()])
  assert found[0] == found[1] and len(set(found[0])) == 3


def test_the_likeliest_text_of_several_beams(folder, model, tokenizer, tmp_path, capfd):
  prompts = ['the', 'a quick brown fox jumps', 'x']
  ids = [[*tokenizer.conventions.begin, *tokenizer.encode(prompt).tolist()] for prompt in prompts]
  ends = tokenizer.conventions.ends
  how = {'max_new_tokens': 12, 'num_beams': 3, 'stop_ids': ends}
  found = [row[0].tokens.tolist() for row in beam_search(*model, ids, **how, length_penalty=2)]
  expected = [tokenizers.decode(tokenizer, [token for token in text if token not in ends]) for text in found]
  (tmp_path / 'in.jsonl').write_text(''.join(json.dumps({'prompt': prompt}) + '\n' for prompt in prompts))
  flags = ('--num_beams=3', '--length_penalty=2', '--max_new_tokens=12')
  files = (f'--prompts={tmp_path}/in.jsonl', f'--out={tmp_path}/out.jsonl')
  assert call(capfd, 'generate', f'--model={folder}', *files, *flags).code == 0
  assert [json.loads(line)['completion'] for line in (tmp_path / 'out.jsonl').read_text().splitlines()] == expected
  ended = call(capfd, 'generate', f'--model={folder}', f'--prompt={prompts[1]}', *flags, '--temperature=0')
  assert (ended.code, ended.out) == (0, f'{prompts[1]}{expected[1]}\n'), ended.err


def test_a_conversation(folder, model, tokenizer, tmp_path, capfd):
  """Each answer is what the model says to all that was said before; /reset forgets it."""
  first = answer(model, tokenizer, rendered(tokenizer, 'who?'))
  second = answer(model, tokenizer, rendered(tokenizer, 'who?', first, 'why?'))
  script = f'who?\nwhy?\n/save {tmp_path}/talk.json\n/reset\nwhy?\n/nonsense\n/exit\nwho?\n'
  ended = call(capfd, 'chat', f'--model={folder}', *GREEDY, stdin=script)
  assert ended.code == 0, ended.err
  assert ended.out == f'{first}\n{second}\n{answer(model, tokenizer, rendered(tokenizer, "why?"))}\n'
  talk = json.loads((tmp_path / 'talk.json').read_text())
  assert [turn['content'] for turn in talk] == ['who?', first, 'why?', second]
  assert [turn['role'] for turn in talk] == ['user', 'assistant'] * 2
  assert '(a new conversation)' in ended.err and '(cut off at 12 tokens)' in ended.err
  assert ended.err.count('/reset begins anew') == 2


def test_a_full_context_is_said_and_nothing_is_lost(folder, tokenizer, capfd, tmp_path):
  question = next(text for n in range(CONTEXT) if len(rendered(tokenizer, text := 'x' * n)) == CONTEXT - 5)
  script = f'{question}\n{"dog; " * 200}\n/save {tmp_path}/talk.json\n/save /nowhere/talk.json\n/save\nwho?\n'
  ended = call(capfd, 'chat', f'--model={folder}', '--temperature=0', stdin=script)
  assert ended.code == 0
  assert '(cut off: the context of 256 tokens is full; /reset)' in ended.err
  assert ended.err.count('(the context of 256 tokens is full: /reset begins anew') == 2
  assert len(json.loads((tmp_path / 'talk.json').read_text())) == 2
  assert '/nowhere/talk.json can not be written' in ended.err and '/save needs the name of a file' in ended.err


@pytest.mark.parametrize(('context', 'stride'), [(64, 64), (64, 20), (255, 100)])
def test_perplexity_by_sliding_windows_is_that_of_a_loop(folder, model, tokenizer, context, stride, tmp_path, capfd):
  """One token after another, each from the window that reaches it first, in which the beginning token stands first."""
  (tmp_path / 'text.txt').write_text(TEXT)
  # As documents are in training: the end of text behind it.
  ids, (begin,) = [*tokenizer.encode(TEXT).tolist(), tokenizer.end_of_text], tokenizer.conventions.begin
  apply = jax.jit(lambda tokens: jax.nn.log_softmax(model[0].apply(model[1], tokens)[0]))
  total, reached, first = 0.0, 0, 0
  while reached < len(ids):
    window = [begin, *ids[first : first + context + 1]]
    padded = jnp.array([window + [0] * (context + 2 - len(window))])
    scores = np.asarray(apply(padded), np.float64)[0]
    for place in range(reached - first, len(window) - 1):
      total -= scores[place, window[place + 1]]
    reached, first = first + len(window) - 1, first + stride
  flags = ['--split=train', '--held_out=0', f'--context={context}', f'--stride={stride}', '--batch_size=2']
  ended = call(capfd, 'evaluate', f'--model={folder}', f'--source=file:{tmp_path}/text.txt', *flags)
  assert ended.code == 0, ended.err
  result = json.loads(ended.out)
  assert result['loss'] == pytest.approx(total / len(ids), rel=1e-5)
  assert result['perplexity'] == pytest.approx(math.exp(total / len(ids)), rel=1e-5)
  assert result['bits_per_byte'] == pytest.approx(total / math.log(2) / len(TEXT), rel=1e-5)
  assert result['byte_perplexity'] == pytest.approx(math.exp(total / len(TEXT)), rel=1e-5)


def test_written_to_a_folder_it_is_the_same_model(folder, model, tokenizer, tmp_path, capfd):
  ended = call(capfd, 'convert', f'--source={folder}', f'--target={tmp_path}/copy')
  assert ended.code == 0, ended.err
  copied, params = huggingface.read(tmp_path / 'copy').load(stacked=False)
  assert copied.config == model[0].config
  jax.tree.map(np.testing.assert_array_equal, params, model[1])
  assert huggingface.read(tmp_path / 'copy').context == CONTEXT
  assert tokenizers.load(tmp_path / 'copy').conventions == tokenizer.conventions
  generation = json.loads((tmp_path / 'copy' / 'generation_config.json').read_text())
  assert generation == {
    'bos_token_id': tokenizer.conventions.begin[0],
    'eos_token_id': list(tokenizer.conventions.ends),
  }


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_written_to_a_file_of_llama_cpp_and_back_it_answers_alike(folder, model, tokenizer, dtype, tmp_path, capfd):
  """Matrices in half precision are what changes; the file is a model by name as the folder is."""
  ended = call(capfd, 'convert', f'--source={folder}', f'--target={tmp_path}/copy.gguf', f'--dtype={dtype}')
  assert ended.code == 0, ended.err
  again, params = pretrained(f'{tmp_path}/copy.gguf').load(stacked=False)
  assert again.config == model[0].config
  close = {'float32': 0, 'float16': 2e-3}[dtype]
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=close, atol=close), params, model[1])
  flags = ['--chat', '--prompt=who?', *GREEDY]
  answers = [call(capfd, 'generate', f'--model={name}', *flags).out for name in (folder, f'{tmp_path}/copy.gguf')]
  assert answers[0] == answers[1] != ''


def test_quantised_on_load_or_once_it_answers_alike(folder, tmp_path, capfd):
  """And not quite like the model it was made from."""
  (tmp_path / 'text.txt').write_text(TEXT)
  text = [f'--source=file:{tmp_path}/text.txt', '--split=train', '--held_out=0', '--context=64']
  ended = call(capfd, 'convert', f'--source={folder}', f'--target={tmp_path}/small', '--quantization=int4(group=16)')
  assert ended.code == 0, ended.err
  models = ([f'{folder}'], [f'{folder}', '--quantization=int4(group=16)'], [f'{tmp_path}/small'])
  evaluated = lambda name, *flags: json.loads(call(capfd, 'evaluate', f'--model={name}', *flags, *text).out)
  losses = [evaluated(*words)['loss'] for words in models]
  assert losses[1] == losses[2] and 1e-4 < abs(losses[0] - losses[1]) < 0.5
  sizes = [(name / 'model.safetensors').stat().st_size for name in (folder, tmp_path / 'small')]
  assert sizes[1] < 0.7 * sizes[0]  # embeddings are most of so small a model


WRONG = {
  'quantisation': (('generate', '--prompt=x', '--quantization=int9'), "--quantization = 'int9': no part is named"),
  'its group': (
    ('chat', '--quantization=int8(group=20)'),
    'group = 20 does not divide the 32 inputs of a linear layer',
  ),
  'its place': (('convert', '--target=x.gguf', '--quantization=int8'), '--quantization is of a folder'),
  'no prompt': (('generate',), 'give --prompt=TEXT, or --prompts=FILE.jsonl'),
  'no file': (('generate', '--prompts=/nowhere.jsonl', '--out=x'), '--prompts=/nowhere.jsonl can not be read'),
  'no out': (('generate', '--prompts=LICENSE'), '--out is missing'),
  'nowhere to write': (('generate', '--prompts=PACKAGES', '--out=/nowhere/x'), '--out=/nowhere can not be written to'),
  'a flag of others': (
    ('evaluate', '--source=file:LICENSE', '--temperature=1'),
    "Unknown command line flag 'temperature'",
  ),
  'temperature': (('chat', '--temperature=-1'), 'temperature = -1.0 must be 0 (greedy) or a positive number'),
  'no JSON': (('generate', '--prompts=LICENSE', '--out=x'), 'LICENSE, line 2: not JSON'),
  'no prompt in a line': (('generate', '--prompts=PACKAGES', '--out=x'), 'expected an object with a string "prompt"'),
  'context': (('evaluate', '--source=file:LICENSE', '--context=256'), '--context=256 exceeds the 255 tokens'),
  'stride': (('evaluate', '--source=file:LICENSE', '--context=64', '--stride=65'), 'stride = 65 must be from 1 to'),
  'source': (('evaluate',), '--source is missing'),
  'two drafts': (('generate', '--prompt=x', '--draft=lookup', '--medusa=x'), '--draft and --medusa both propose'),
  'typical alone': (('generate', '--prompt=x', '--typical=0.1'), '--typical says what is kept of the guesses of'),
  'layers': (('generate', '--prompt=x', '--draft=layers:x'), '--draft=layers:x: layers takes a number'),
  'too many layers': (('chat', '--draft=layers:9'), 'draft of 9 layers: the model has 2'),
  'no draft': (('generate', '--prompt=x', '--draft=nonsense'), 'nonsense is not a folder with config.json'),
  'no heads': (('generate', '--prompt=x', '--medusa=tests'), 'tests is not the folder of a run'),
  'penalty': (('generate', '--prompt=x', '--repetition_penalty=0'), 'repetition_penalty = 0.0 must be positive'),
  'samples': (('generate', '--prompt=x', '--num_samples=2'), '--num_samples writes several texts'),
  'drawn beams': (('generate', '--prompt=x', '--num_beams=2', '--temperature=0.5'), '--temperature does not go with'),
  'cut beams': (('generate', '--prompt=x', '--num_beams=2', '--stop=x'), '--stop does not go with --num_beams'),
  'beams of others': (('generate', '--prompt=x', '--length_penalty=2'), '--length_penalty is of beam search: give'),
  'no beams': (('generate', '--prompt=x', '--num_beams=0'), 'num_beams'),
  'a conversation of beams': (('chat', '--num_beams=2'), "Unknown command line flag 'num_beams'"),
  'too long': (('generate', '--prompt=x', '--max_new_tokens=300'), 'exceed the context of 256'),
}


@pytest.mark.parametrize('name', WRONG)
def test_bad_input_is_one_line(name, folder, tmp_path, capfd):
  (experiment, *flags), message = WRONG[name]
  (tmp_path / 'lines.jsonl').write_text('{"prompt": "x"}\n' if 'nowhere' in name else '{"text": "x"}\n')
  flags = [flag.replace('PACKAGES', f'{tmp_path}/lines.jsonl') for flag in flags]
  ended = call(capfd, experiment, f'--{"source" if experiment == "convert" else "model"}={folder}', *flags)
  assert ended.code == 2 and message in ended.err and ended.err.count('\n') == 1
  assert not pathlib.Path('x').exists()


def test_a_model_that_was_not_taught_to_converse(folder, tmp_path, capfd):
  (tmp_path / 'config.json').write_bytes((folder / 'config.json').read_bytes())
  (tmp_path / 'model.safetensors').symlink_to(folder / 'model.safetensors')
  ended = call(capfd, 'chat', f'--model={tmp_path}')
  assert ended.code == 2 and 'has no tokenizer beside its weights: add its tokenizer.json' in ended.err
  (tmp_path / 'tokenizer.json').write_bytes((folder / 'tokenizer.json').read_bytes())
  ended = call(capfd, 'chat', f'--model={tmp_path}')
  assert ended.code == 2 and 'has no chat template' in ended.err
  ended = call(capfd, 'generate', f'--model={tmp_path}', '--chat', '--prompt=who?')
  assert ended.code == 2 and 'has no chat template' in ended.err


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('/nowhere', '/nowhere is not a folder with config.json'),
    ('asset:smolm2', "did you mean 'smollm2'"),
    ('hf://owner', "'hf://owner' is not of the form"),
  ],
)
def test_names_of_no_model(name, message, capfd):
  ended = call(capfd, 'generate', f'--model={name}', '--prompt=x')
  assert ended.code == 2 and message in ended.err and ended.err.count('\n') == 1


def test_a_run_reads_no_token_before_a_text_whatever_its_vocabulary_was_made_for(folder, tokenizer, tmp_path, capfd):
  """It was trained on text alone: so it is evaluated and written on from."""
  inner = tokenizers.load(folder).inner
  inner.post_processor = TemplateProcessing(single='<s> $A', special_tokens=[('<s>', tokenizer.conventions.begin[0])])
  inner.save(str(tmp_path / 'tokenizer.json'))
  (tmp_path / 'text.txt').write_text(TEXT)
  flags = [f'--config.data.source=file:{tmp_path}/text.txt', f'--config.data.tokenizer=json:{tmp_path}/tokenizer.json']
  small = ['--config.num_steps=2', '--config.context=8', '--config.data.held_out=0.3', '--config.sample.prompt=']
  assert call(capfd, 'pretrain', f'--config={TINY}', f'--workdir={tmp_path}/run', *flags, *small).code == 0
  assert tokenizers.load(tmp_path / 'run' / 'tokenizer').conventions.begin == tokenizer.conventions.begin
  result = json.loads((tmp_path / 'run' / 'result.json').read_text())
  ended = call(capfd, 'evaluate', f'--model={tmp_path}/run')
  assert json.loads(ended.out)['loss'] == pytest.approx(result['validation_loss'], rel=1e-5)
  rounded = json.loads(call(capfd, 'evaluate', f'--model={tmp_path}/run', '--quantization=int8').out)['loss']
  assert result['validation_loss'] != rounded == pytest.approx(result['validation_loss'], rel=0.01)
  written = call(capfd, 'generate', f'--model={tmp_path}/run', '--prompt=the', *GREEDY).out
  run = language.load(f'{tmp_path}/run', stacked=False)
  expected = answer((run.model, run.params), run.tokenizer, run.tokenizer.encode('the').tolist())
  assert written == f'the{expected}\n'


def test_what_stands_there_is_not_written_over(folder, tmp_path, capfd):
  ended = call(capfd, 'convert', f'--source={folder}', f'--target={tmp_path}')
  assert ended.code == 2 and 'is there already: choose another name' in ended.err and not list(tmp_path.iterdir())
