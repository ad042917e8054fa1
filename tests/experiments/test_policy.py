"""Learning from rewards, from the command line: what is rewarded is written, and a run broken off goes on."""

import dataclasses
import itertools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import actors, language, rewards
from gpt_jax.data import tokenizers
from gpt_jax.data.sources import records
from gpt_jax.models.heads import LanguageModel, RewardModel
from gpt_jax.models.parts import from_config
from gpt_jax.rollouts import Gae, Response
from gpt_jax.types import UserError
from tests.experiments import speaker
from tests.experiments.program import call
from tests.experiments.test_pretrain import TEXT, lines, losses
from tests.experiments.test_reward import flags as reward_flags
from tests.experiments.test_reward import rated  # noqa: F401  a fixture

SMALL = {'num_layers': 2, 'model_dim': 16, 'num_heads': 2, 'num_kv_heads': 2, 'mlp': 'swiglu(24)', 'vocab_size': 17}


@pytest.fixture(scope='module')
def asked(tmp_path_factory) -> pathlib.Path:
  """Texts to go on from."""
  path = tmp_path_factory.mktemp('asked') / 'asked.jsonl'
  path.write_text(''.join(json.dumps({'text': TEXT[start:] + TEXT}) + '\n' for start in range(len(TEXT))))
  return path


@pytest.fixture
def letters(monkeypatch):
  """A reward for every o that is written."""
  monkeypatch.setitem(rewards.FUNCTIONS, 'letters', lambda: lambda record, prompt, response: response.count('o') / 2)


def flags(base: pathlib.Path, asked: pathlib.Path, workdir: pathlib.Path, *others: str) -> list[str]:
  source = f'--config.data.source=file:{asked}'
  return ['--config=configs/policy/tiny.py', f'--config.init_from={base}', source, f'--workdir={workdir}', *others]


@pytest.mark.parametrize(
  'how',
  [
    ['--config.num_rollouts=12', '--config.evaluation.judge=letters'],
    *(
      pytest.param(['--config.num_rollouts=12', *how], marks=pytest.mark.slow)
      for how in (
        ['--config.critic=shared', '--config.gae.whiten_rewards=True'],
        ['--config.estimator=grpo', '--config.rollout.num_samples=4'],
        ['--config.estimator=rloo', '--config.rollout.num_samples=2'],
      )
    ),
  ],
  ids=['own critic', 'shared critic', 'grpo', 'rloo'],
)
def test_what_is_rewarded_is_written(how, base, asked, letters, tmp_path, capfd):
  workdir = tmp_path / 'run'
  ended = call(capfd, 'policy', *flags(base, asked, workdir, '--config.reward.function=letters', *how))
  assert ended.code == 0, ended.err
  assert 'train: 40 prompts; 0 are empty or longer' in ended.out and 'Time of a rollout and its updates' in ended.out
  first = next(line for line in lines(workdir) if line['step'] == 0)
  result = json.loads((workdir / 'result.json').read_text())
  assert result['held_out_reward'] > 2 * first['held_out_reward'] > 0, (first, result)
  assert result['held_out_kl'] > 1 and abs(first['held_out_kl']) < 1e-4
  assert 0 < result['held_out_distinct_2'] < 1 and result['held_out_length'] <= 10
  steps = [line for line in lines(workdir) if 'ratio' in line]
  assert abs(steps[0]['ratio'] - 1) < 1e-5 and steps[0]['approximate_kl'] < 1e-9 and steps[-1]['kl'] > 1
  assert ('explained_variance' in result) == ('estimator' not in str(how))
  rollouts = [json.loads(line) for line in (workdir / 'rollouts.jsonl').read_text().splitlines()]
  assert [line['rollout'] for line in rollouts] == list(range(len(rollouts))) and rollouts[-1]['reward'] > rollouts[0][
    'reward'
  ]
  samples = [json.loads(line) for line in (workdir / 'samples.jsonl').read_text().splitlines()]
  assert np.mean([line['response'].count('o') / 2 for line in samples]) == pytest.approx(result['held_out_reward'])
  said = call(capfd, 'generate', f'--model={workdir}', f'--prompt={samples[0]["prompt"]}', '--max_new_tokens=10')
  assert said.code == 0 and said.out.startswith(samples[0]['prompt']), said


def test_a_reward_model_is_learned_from_and_a_run_goes_on(base, rated, asked, tmp_path, capfd):  # noqa: F811
  reward = tmp_path / 'reward'
  assert call(capfd, 'reward', *reward_flags(base, rated, reward)).code == 0
  text = f'--config.pretraining.source=file:{base.parent / "text.txt"}'
  how = [f'--config.reward.model={reward}', text, '--config.pretraining.coefficient=1.0', '--config.kl.target=0.5']
  assert call(capfd, 'policy', *flags(base, asked, tmp_path / 'whole', *how)).code == 0
  broken = flags(base, asked, tmp_path / 'broken', *how)
  shutil.copytree(tmp_path / 'whole', tmp_path / 'broken')
  for name in ('result.json', 'checkpoints/16'):
    (tmp_path / 'broken' / name).rename(tmp_path / pathlib.Path(name).name)
  again = call(capfd, 'policy', *broken)
  assert again.code == 0 and 'after step 12' in again.out, again
  assert losses(tmp_path / 'broken') == losses(tmp_path / 'whole')
  read = lambda run: (tmp_path / run / 'rollouts.jsonl').read_text()
  assert (
    read('broken') == read('whole')
    and len({json.loads(line)['kl_coefficient'] for line in read('whole').splitlines()}) == 4
  )
  result = json.loads((tmp_path / 'whole/result.json').read_text())
  assert result['pretraining_loss'] < 1 and 'speed' in result and result['speed']['sampling_seconds'] > 0
  assert language.load(str(tmp_path / 'whole')).model.config == language.load(str(base)).model.config
  other = call(capfd, 'policy', *flags(base, asked, tmp_path / 'none', f'--config.reward.model={base}'))
  assert other.code == 2 and 'has no reward.json' in other.err


@pytest.mark.parametrize('kind', ['own', 'shared'])
def test_how_a_critic_begins(kind, monkeypatch):
  """Its own begins as the reward model: the value of a whole text is its reward; a shared head knows nothing."""
  config = from_config({'family': 'llama2_7b', **SMALL})
  tokens = jnp.arange(6)[None]
  policy, reward = LanguageModel(config), RewardModel(config)
  own = jax.jit(policy.init)(jax.random.key(0), tokens)
  learned = jax.tree.map(lambda leaf: leaf + 0.1, jax.jit(reward.init)(jax.random.key(1), tokens))
  monkeypatch.setattr(actors, 'load_reward', lambda workdir: (reward, learned))
  model, first = actors.actor({'critic': kind, 'reward': {'model': 'DIR'}}, config, own, Gae())
  drawn = jax.jit(model.init, static_argnames='method')(jax.random.key(2), tokens, method='features_and_values')
  begun = first(own, drawn)
  hidden, unembed, values = model.apply(begun, tokens, method='features_and_values')
  np.testing.assert_array_equal(unembed(hidden), policy.apply(own, tokens)[0])
  wanted = reward.apply(learned, tokens)[0] if kind == 'own' else 0.0
  np.testing.assert_allclose(values[0, -1], wanted, atol=1e-6)
  alone, first = actors.actor({'critic': 'own', 'reward': {'model': ''}}, config, own, Gae())
  begun = first(
    own, jax.jit(alone.init, static_argnames='method')(jax.random.key(2), tokens, method='features_and_values')
  )
  assert not alone.apply(begun, tokens, method='features_and_values')[2].any()
  np.testing.assert_array_equal(
    begun['params']['critic']['transformer']['embed']['embedding'], own['params']['transformer']['embed']['embedding']
  )


def test_a_reward_model_reads_what_ended_with_its_end_and_no_padding(tmp_path, monkeypatch):
  other = speaker.save(tmp_path / 'speaker')
  found = language.weights(str(other))
  config = dataclasses.replace(found.config, tie_embeddings=True).evaluated()
  model = RewardModel(config)
  rng = np.random.default_rng(0)
  noisy = lambda leaf: leaf + jnp.asarray(rng.normal(size=leaf.shape) / 3, jnp.float32)
  params = jax.tree.map(noisy, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), int)))
  monkeypatch.setattr(rewards, 'load_reward', lambda workdir: (model, params))
  monkeypatch.setattr(language, 'tokenizer_of', lambda workdir: found.tokenizer)
  end = found.tokenizer.end_of_text
  responses = [
    Response([5, 6], [7, 8], True),
    Response([5, 6], [7, 8], False),
    Response([5], [7, end], True),
    Response([9], [4] * 5, False),
  ]
  texts = [[5, 6, 7, 8, end], [5, 6, 7, 8], [5, 7, end], [9, 4, 4, 4, 4, 4]]
  for batch_size in (3, 4):
    scores = rewards.of_model('DIR', found.tokenizer, 6, batch_size)(responses)
    wanted = [float(model.apply(params, jnp.asarray(ids)[None])[0]) for ids in texts]
    np.testing.assert_allclose(scores, wanted, rtol=1e-4)
  assert min(abs(a - b) for a, b in itertools.combinations(wanted, 2)) > 0.05, 'or nothing could be told apart'
  monkeypatch.setattr(language, 'tokenizer_of', lambda workdir: tokenizers.tokenizer('bytes'))
  with pytest.raises(UserError, match='has another tokenizer'):
    rewards.of_model('DIR', found.tokenizer, 6, 4)


@pytest.mark.slow
def test_tasks_whose_answers_are_checked(tmp_path, capfd):
  """A model of characters learns sums by demonstrations, then by nothing but whether its answers are right."""
  source = '--config.data.source=gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1&size=400'
  model = ['--config.model.positions=learned(96)', '--config.context=90', '--config.num_steps=5']
  base, taught = tmp_path / 'base', tmp_path / 'taught'
  assert call(capfd, 'pretrain', '--config=configs/pretrain/tiny.py', source, *model, f'--workdir={base}').code == 0
  shown = [f'--config.init_from={base}', '--config.context=90', '--config.epochs=2', '--config.data.packed=False']
  assert call(capfd, 'instruct', '--config=configs/instruct/tiny.py', source, *shown, f'--workdir={taught}').code == 0
  how = ['--config.reward.function=gym', '--config.estimator=grpo', '--config.rollout.num_samples=4']
  how += ['--config.data.prompt_tokens=80', '--config.data.beginnings=False', '--config.rollout.max_new_tokens=3']
  ended = call(capfd, 'policy', *flags(taught, tmp_path, tmp_path / 'run', *how, source))
  assert ended.code == 0, ended.err
  result = json.loads((tmp_path / 'run/result.json').read_text())
  assert 0 <= result['held_out_reward'] <= 1 and 'reward' in result


def test_functions_by_hand():
  record = {'answer': ' 42'}
  answer = rewards.FUNCTIONS['answer']()
  assert [answer(record, 'p', text) for text in ('42', ' 42\nmore', '42.', 'x 42', '')] == [1, 1, 0, 0, 0]
  ((_, task),) = records('gym:chain_sum?size=1', held_out=0)
  gym = rewards.FUNCTIONS['gym']()
  assert gym(task, task['prompt'], f' {task["answer"]}\n') == 1 and gym(task, task['prompt'], 'many') < 0.1
  with pytest.raises(UserError, match='take the prompts from gym:TASK'):
    gym({'prompt': 'p'}, 'p', '3')
  vader = rewards.FUNCTIONS['vader']()
  assert vader({}, 'great', 'It is dull.') < -0.3 and vader({}, 'dull', 'A great film!') > 0.5
  with pytest.raises(UserError, match="did you mean 'vader'"):
    rewards.of_function('vade', 'config.reward.function', None, {})


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (['--config.init_from='], 'config.init_from is missing'),
    (['--config.reward.function='], 'config.reward takes either a model'),
    (['--config.reward.model=x'], 'config.reward takes either a model'),
    (['--config.reward.function=vadr'], "did you mean 'vader'"),
    (['--config.data.source='], 'config.data.source is empty'),
    (['--config.rollout.prompts=0'], 'config.rollout.prompts = 0 must be at least 1'),
    (['--config.pretraining.coefficient=1.0'], 'config.pretraining.source is missing'),
    (['--config.minibatches=3'], 'config.minibatches = 3 does not divide the 16 responses'),
    (['--config.rollout.temperature=0'], 'config.rollout.temperature = 0.0 must be above 0'),
    (['--config.estimator=ppo'], "config.estimator = 'ppo'"),
    (['--config.estimator=rloo'], 'config.rollout.num_samples must be 2 or more'),
    (['--config.critic=none'], "config.critic = 'none'"),
    (['--config.rollout.max_new_tokens=60'], 'max_new_tokens = 66 exceeds the 64 learned positions'),
    (['--config.rollout.truncate_at=fox'], "config.rollout.truncate_at = 'fox' is no token"),
  ],
)
def test_bad_configs_end_in_one_line(changes, message, base, asked, tmp_path, capfd):
  ended = call(capfd, 'policy', *flags(base, asked, tmp_path / 'run', '--config.reward.function=vader', *changes))
  assert ended.code == 2 and message in ended.err and len(ended.err.splitlines()) == 1, ended.err
  assert not (tmp_path / 'run').exists()
