"""Medusa's heads from the command line to the tree that decoding takes."""

import collections
import functools
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import language
from experiments.generations import Data
from experiments.heads import load_medusa
from gpt_jax.data.answers import Answers, answered
from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.models.quantization import Int8
from gpt_jax.training.workdir import read_json
from gpt_jax.types import UserError
from tests.experiments import speaker
from tests.experiments.program import call, spawn
from tests.experiments.test_pretrain import TEXT, lines, losses

MEDUSA = 'configs/medusa/tiny.py'


def flags(base: pathlib.Path, workdir: pathlib.Path, *others: str) -> list[str]:
  source = f'--config.data.source=file:{base.parent / "text.txt"}'
  return [f'--config={MEDUSA}', f'--config.base={base}', source, f'--workdir={workdir}', *others]


@pytest.fixture(scope='session')
def heads(base, tmp_path_factory) -> tuple[pathlib.Path, str]:
  workdir = tmp_path_factory.mktemp('medusa') / 'run'
  ended = spawn('medusa', *flags(base, workdir, '--config.num_steps=60'))
  assert ended.code == 0, ended.err
  return workdir, ended.out


def test_heads_learn_to_guess_ahead(heads):
  workdir, out = heads
  result = json.loads((workdir / 'result.json').read_text())
  assert np.shape(result['accuracies']) == (3, 10)
  assert np.array(result['accuracies'])[:, 0].min() > 0.8, 'the text repeats: every head can know it'
  assert (np.diff(result['accuracies'], axis=1) >= 0).all()
  assert result['validation_head_1_top_1'] == result['accuracies'][0][0]
  assert 3 < result['expected_tokens'] < 4 and result['speed']['tokens_per_second'] > 0
  assert 'Vicuna-7B top-1' in out and '0.560' in out and f'{result["accuracies"][2][4]:.3f}' in out
  first = next(line for line in lines(workdir) if line['step'] == 0)
  assert first['validation_head_1_top_1'] < 0.1, 'a head begins as the model itself, which guesses one token less far'


def test_with_its_heads_a_model_writes_the_same_in_fewer_steps(heads, base, capfd):
  prompt = f'--prompt={TEXT[:40]}'
  plain = call(capfd, 'generate', f'--model={base}', prompt, '--temperature=0', '--max_new_tokens=24')
  ended = call(
    capfd, 'generate', f'--model={base}', prompt, '--temperature=0', '--max_new_tokens=24', f'--medusa={heads[0]}'
  )
  assert (ended.code, ended.out) == (0, plain.out), ended.err
  speed = lambda err: float(err[1:].partition(' tokens a step')[0])
  assert speed(ended.err) > 2.5, 'the text repeats: every head knows it'
  for how in (['--typical=0.09'], []):  # and drawn: from the heads in a chain
    drawn = [f'--model={base}', prompt, '--temperature=0.5', '--max_new_tokens=24', f'--medusa={heads[0]}', *how]
    assert speed(call(capfd, 'generate', *drawn).err) > 2


def test_what_decoding_takes(heads, base):
  """Loaded, the heads give the accuracy that the run found; the tree is of its size."""
  draft = load_medusa(str(heads[0]))
  medusa, params, tree = draft.heads, draft.params, draft.tree
  assert draft.vocabulary is None
  assert (medusa.num_heads, medusa.shared) == (3, False) and len(tree) == 16 and tree.max_depth <= 3
  trained = language.load(str(base))
  assert load_medusa(str(heads[0]), trained.model.config).heads == medusa
  ids = trained.tokenizer.encode(TEXT * 2)[:60]
  features = jax.jit(functools.partial(trained.model.apply, method='features'))
  hidden, _, _ = features(trained.params, jnp.asarray(ids[None]))
  guesses = jnp.argmax(medusa.apply(params, hidden), axis=-1)[0]
  for k in (1, 2, 3):
    right = guesses[20 : -1 - k, k - 1] == ids[21 + k :]
    assert right.mean() > 0.7, k


def test_the_heads_alone_are_kept(heads):
  params = load_medusa(str(heads[0])).params
  assert set(params['params']) == {'residual_kernel', 'residual_bias', 'unembed_table'}
  scales = params['params']['unembed_table'].pop('scale')
  assert scales.shape == (3, params['params']['unembed_table']['values'].shape[1], 1), (
    'it is in eight bits from here on'
  )
  assert read_json(heads[0] / 'result.json')['parameters'] == sum(x.size for x in jax.tree.leaves(params))


def test_heads_go_on_from_others(heads, base, tmp_path, capfd):
  ended = call(
    capfd, 'medusa', *flags(base, tmp_path / 'run', f'--config.init_from={heads[0]}', '--config.num_steps=1')
  )
  assert ended.code == 0, ended.err
  first = next(line for line in lines(tmp_path / 'run') if line['step'] == 0)
  assert first['validation_head_3_top_1'] == read_json(heads[0] / 'result.json')['validation_head_3_top_1'] > 0.8


@pytest.mark.slow
def test_broken_off_it_goes_on_bit_for_bit(base, tmp_path, capfd):
  assert call(capfd, 'medusa', *flags(base, tmp_path / 'whole', '--config.num_steps=10')).code == 0
  broken = flags(base, tmp_path / 'broken', '--config.num_steps=10')
  shutil.copytree(tmp_path / 'whole', tmp_path / 'broken')
  for name in ('result.json', 'tree.json', 'checkpoints/10'):
    path = tmp_path / 'broken' / name
    path.rename(tmp_path / path.name)
  again = call(capfd, 'medusa', *broken)
  assert again.code == 0 and 'after step 5' in again.out, again.err
  assert losses(tmp_path / 'broken') == losses(tmp_path / 'whole')
  assert (tmp_path / 'broken/tree.json').read_bytes() == (tmp_path / 'whole/tree.json').read_bytes()


def test_a_shared_table_is_frozen(base, tmp_path, capfd):
  ended = call(
    capfd, 'medusa', *flags(base, tmp_path / 'run', '--config.shared', '--config.optimizer.weight_decay=0.1')
  )
  assert ended.code == 0, ended.err
  draft = load_medusa(str(tmp_path / 'run'))
  assert draft.heads.shared
  table = language.load(str(base)).params['params']['transformer']['embed']['embedding']
  found = jax.tree.map(lambda x: x[0], draft.params['params']['unembed_table'])
  jax.tree.map(np.testing.assert_array_equal, found, jax.jit(Int8().encode)(table.T))
  assert losses(tmp_path / 'run')[20] < losses(tmp_path / 'run')[1]


def test_heads_that_guess_frequent_tokens_alone(base, tmp_path, capfd):
  """Their table has the rows of these; what is written is the same, in fewer steps; and they go on as they are."""
  workdir = tmp_path / 'run'
  few = flags(base, workdir, '--config.draft_vocab_size=12', '--config.shared', '--config.num_steps=40')
  assert call(capfd, 'medusa', *few).code == 0
  trained, draft = language.load(str(base)), load_medusa(str(workdir))
  counts = collections.Counter(trained.tokenizer.encode((base.parent / 'text.txt').read_text()).tolist())
  most = [count for _, count in counts.most_common(12)]
  assert len(counts) > 12 and (np.diff(draft.vocabulary) > 0).all()
  assert sorted((counts[token] for token in draft.vocabulary.tolist()), reverse=True) == pytest.approx(most, rel=0.1)
  table = trained.params['params']['transformer']['embed']['embedding'][draft.vocabulary]
  found = jax.tree.map(lambda x: x[0], draft.params['params']['unembed_table'])
  jax.tree.map(np.testing.assert_array_equal, found, jax.jit(Int8().encode)(table.T))
  write = [f'--model={base}', f'--prompt={TEXT[:40]}', '--max_new_tokens=24']
  plain = call(capfd, 'generate', *write, '--temperature=0')
  for temperature in (0, 0.5):
    guessed = call(capfd, 'generate', *write, f'--temperature={temperature}', f'--medusa={workdir}')
    assert guessed.code == 0 and float(guessed.err[1:].partition(' tokens a step')[0]) > 1.3, guessed.err
    assert temperature or guessed.out == plain.out
  more = [f'--config.init_from={workdir}', '--config.draft_vocab_size=12', '--config.shared', '--config.num_steps=1']
  assert call(capfd, 'medusa', *flags(base, tmp_path / 'more', *more)).code == 0
  np.testing.assert_array_equal(load_medusa(str(tmp_path / 'more')).vocabulary, draft.vocabulary)


def test_tokens_are_counted_as_often_as_they_are_learned_from():
  """Of the second source a row has more of token 7 than one of the first has of token 5; prompts do not count."""
  first, second = Answers([answered([1, 1, 1, 1], [5, 5, 6])] * 4, 7), Answers([answered([1], [7, 7, 7, 8])], 7)
  most = lambda *weights, number=1: Data([first, second], weights, [second]).frequent_tokens(number, 10).tolist()
  assert most(1.0, 1.0) == [7] and most(2.0, 1.0) == [5] and most(2.0, 1.0, number=2) == [5, 7]
  assert most(1.0, 1.0, number=5) == [0, 5, 6, 7, 8]


def test_heads_of_a_run_from_before_there_were_vocabularies(heads, base, tmp_path, capfd):
  shutil.copytree(heads[0], tmp_path / 'old')
  said = read_json(tmp_path / 'old/config.json')
  del said['config']['draft_vocab_size']
  (tmp_path / 'old/config.json').write_text(json.dumps(said))
  assert load_medusa(str(tmp_path / 'old')).vocabulary is None
  other = [f'--config.init_from={tmp_path / "old"}', '--config.draft_vocab_size=12']
  ended = call(capfd, 'medusa', *flags(base, tmp_path / 'run', *other))
  assert ended.code == 2 and 'config.draft_vocab_size = 12 is not the 0 of config.init_from' in ended.err, ended.err


@pytest.mark.slow
def test_heads_of_a_rounded_model(base, tmp_path, capfd):
  """They are trained on its hidden states, and it writes with them what it writes without."""
  workdir = tmp_path / 'run'
  run = flags(base, workdir, '--config.quantization=int4(group=16)', '--config.num_steps=40')
  assert call(capfd, 'medusa', *run).code == 0
  write = [f'--model={base}', '--quantization=int4(group=16)', f'--prompt={TEXT[:40]}', '--temperature=0']
  write.append('--max_new_tokens=24')
  plain, guessed = call(capfd, 'generate', *write), call(capfd, 'generate', *write, f'--medusa={workdir}')
  assert (guessed.code, guessed.out) == (0, plain.out) and plain.code == 0, guessed.err
  assert float(guessed.err[1:].partition(' tokens a step')[0]) > 1.5


def test_a_model_learns_along_with_its_heads(base, tmp_path, capfd):
  """The run's folder is the model's too: another one than before, whose text its own heads leave as it is."""
  workdir = tmp_path / 'run'
  joint = ['--config.joint.weight=0.2', '--config.joint.lora=lora(4)', '--config.num_steps=40']
  joint.append('--config.draft_vocab_size=24')
  ended = call(capfd, 'medusa', *flags(base, workdir, *joint))
  assert ended.code == 0, ended.err
  load = lambda folder: language.load(str(folder), stacked=False).params['params']['transformer']
  old, new = load(base), load(workdir)
  same = jax.tree.map(lambda x, y: bool((x == y).all()), old, new)
  for path, is_same in jax.tree_util.tree_leaves_with_path(same):
    assert is_same == (path[-1].key != 'kernel'), path
  first, last = (line for line in lines(workdir) if line['step'] in (0, 40) and 'validation_nll' in line)
  assert last['validation_nll'] < 0.1, 'it knows the text as before'
  assert last['validation_head_1_top_1'] > 0.5 > first['validation_head_1_top_1']
  write = [f'--model={workdir}', f'--prompt={TEXT[:40]}', '--temperature=0', '--max_new_tokens=24']
  plain, guessed = call(capfd, 'generate', *write), call(capfd, 'generate', *write, f'--medusa={workdir}')
  assert (guessed.code, guessed.out) == (0, plain.out) and plain.code == 0, guessed.err
  assert float(guessed.err[1:].partition(' tokens a step')[0]) > 1.5
  assert language.weights(str(workdir)).run == language.weights(str(base)).run, 'it is read as what it comes from'
  measured = call(capfd, 'evaluate', f'--model={workdir}', '--num_tokens=500')
  assert measured.code == 0 and 'perplexity' in measured.out, measured


def test_heads_alone_are_no_model(heads, base, capfd):
  ended = call(capfd, 'generate', f'--model={heads[0]}', '--prompt=a')
  assert ended.code == 2 and f'give it as --medusa, and {base} as --model' in ended.err


@pytest.fixture(scope='module')
def other(tmp_path_factory) -> pathlib.Path:
  """A model of other hands, which begins every text with a token and has a chat template."""
  return speaker.save(tmp_path_factory.mktemp('speaker') / 'model')


@pytest.mark.parametrize('prompts', [pytest.param('text', marks=pytest.mark.slow), 'chat'])
def test_heads_learn_from_what_the_model_writes(other, base, prompts, tmp_path, capfd):
  """Written once, as generate writes it; broken off, it goes on and ends the same."""
  (base.parent / 'lines.txt').write_text(TEXT.replace('; ', '\n') * 60)
  source = f'--config.data.source=file:{base.parent / "lines.txt"}'
  how = [
    f'--config.generate.prompts={prompts}',
    '--config.generate.rows=10',
    '--config.num_steps=2',
    '--config.num_heads=1',
    "--config.generate.requests=('{}', 'Say {}')",
  ]
  workdir = tmp_path / 'run'
  run = [f'--config={MEDUSA}', f'--config.base={other}', source, f'--workdir={workdir}', *how]
  assert call(capfd, 'medusa', *run).code == 0
  path = workdir / 'generations/train.jsonl'
  whole = path.read_text()
  made_by, *pairs = map(json.loads, whole.splitlines())
  assert made_by['model'] == str(other) and len(pairs) == 10
  assert len((workdir / 'generations/validation.jsonl').read_text().splitlines()) == 5
  trained = language.load(str(other))
  (expected,) = generate(
    trained.model, trained.params, [pairs[6]['prompt']], max_new_tokens=16, sampling=Sampling(temperature=0),
    stop_ids=trained.tokenizer.conventions.ends,
  )  # fmt: skip
  assert pairs[6]['answer'] == expected.tokens.tolist()
  begin = trained.decode(pairs[6]['prompt'])
  assert begin.startswith('<s>') if prompts == 'text' else '<|im_start|>user\n' in begin
  said = ['user\nSay ' in trained.decode(pair['prompt']) for pair in pairs]
  assert said == [prompts == 'chat' and i % 2 == 1 for i in range(10)]
  if prompts == 'chat':
    talk = functools.partial(call, capfd, 'chat', f'--model={other}', '--temperature=0', '--max_new_tokens=6')
    plain, ended = talk(stdin='the cat\nand\n'), talk(f'--medusa={workdir}', stdin='the cat\nand\n')
    assert (ended.code, ended.out) == (0, plain.out) and len(plain.out.splitlines()) >= 2, ended
    return
  path.write_text(whole[: len(whole) * 2 // 3])
  for name in ('result.json', 'checkpoints'):
    (workdir / name).rename(tmp_path / name)
  assert call(capfd, 'medusa', *run).code == 0
  assert path.read_text() == whole
  (workdir / 'checkpoints').rename(tmp_path / 'others')
  assert call(capfd, 'medusa', *run, '--config.generate.temperature=1.0').code == 0
  assert path.read_text() != whole, 'what was written in another way is not taken'


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (['--config.base='], 'config.base is missing'),
    (['--config.base=/no/such'], '/no/such'),
    (['--config.draft_vocab_size=9'], 'config.draft_vocab_size = 9 must be from 10 to '),
    (['--config.num_heads=0'], 'config.num_heads = 0 must be at least 1'),
    (['--config.data.source='], 'config.data.source is empty'),
    (['--config.context=100'], 'config.context = 100 exceeds the 64 learned positions'),
    (['--config.init_from=/no/such'], '/no/such is not the folder of a run'),
    (['--config.quantization=int9'], "config.quantization = 'int9'"),
    (['--config.quantization=int8', '--config.joint.weight=0.2'], 'config.quantization is of a model that stays'),
    (['--config.generate.rows=4', '--config.generate.prompts=txt'], "did you mean 'text'?"),
    (['--config.generate.rows=4', '--config.generate.prompts=chat'], 'has no chat template'),
    (
      ['--config.generate.rows=4', '--config.generate.prompts=chat', "--config.generate.requests=('{}', 'Why')"],
      "config.generate.requests: 'Why' must have {} once",
    ),
    (['--config.tree.num_nodes=0'], 'config.tree.num_nodes = 0 must be at least 1'),
    (['--config.joint.weight=-1.0'], 'config.joint.weight = -1.0 must not be negative'),
    (['--config.joint.lora=lora(0)'], 'config.joint.lora'),
  ],
)
def test_bad_input_is_one_line(base, tmp_path, capfd, changes, message):
  ended = call(capfd, 'medusa', *flags(base, tmp_path / 'run', *changes))
  assert ended.code == 2, ended
  said = [line for line in ended.err.splitlines() if line.startswith('error: ')]
  assert len(said) == 1 and message in said[0], ended.err


def test_what_is_no_run_of_heads(base, tmp_path):
  with pytest.raises(UserError, match='is not the folder of a run'):
    load_medusa(str(tmp_path))
  with pytest.raises(UserError, match=r'is not a run of experiments\.medusa'):
    load_medusa(str(base))
  os.makedirs(tmp_path / 'run')
  (tmp_path / 'run/config.json').write_text('{"config": {"num_heads": 2}}')
  with pytest.raises(UserError, match=r'has no tree\.json'):
    load_medusa(str(tmp_path / 'run'))
