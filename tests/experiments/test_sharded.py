"""Every way to train, and decoding, on a mesh of eight devices as on one."""

import json

import numpy as np
import pytest

from experiments import rewards
from tests.experiments import test_instruct, test_medusa, test_policy, test_reward
from tests.experiments.program import call
from tests.experiments.test_instruct import shown  # noqa: F401  fixtures
from tests.experiments.test_medusa import heads  # noqa: F401
from tests.experiments.test_policy import asked  # noqa: F401
from tests.experiments.test_pretrain import lines
from tests.experiments.test_reward import rated  # noqa: F401

MESH = ['--config.mesh.data=2', '--config.mesh.fsdp=2', '--config.mesh.tensor=2']
TIMES = {'seconds', 'tokens_per_second'}
OTHERS = {'instruct': 'shown', 'reward': 'rated', 'policy': 'asked', 'dpo': 'rated'}
SHORT = {
  'instruct': ['--config.epochs=4', '--config.optimizer.ema=0.9'],
  'reward': ['--config.epochs=0.5'],
  'policy': ['--config.num_rollouts=2', '--config.reward.function=letters', '--config.kl.target=0.5'],
  'medusa': ['--config.num_steps=8'],
  'dpo': ['--config.epochs=0.5'],
}


def flags(request, name, base, workdir):
  if name == 'medusa':
    return test_medusa.flags(base, workdir, *SHORT[name])
  module = {'instruct': test_instruct, 'reward': test_reward, 'policy': test_policy}.get(name, test_reward)
  given = module.flags(base, request.getfixturevalue(OTHERS[name]), workdir, *SHORT[name])
  return [f'--config=configs/{name}/tiny.py', *given[1:]]


@pytest.mark.parametrize(
  'name', ['instruct', 'reward', 'policy', 'medusa', pytest.param('dpo', marks=pytest.mark.slow)]
)
def test_training_on_eight_devices_is_that_on_one(name, request, base, tmp_path, capfd, monkeypatch):
  monkeypatch.setitem(rewards.FUNCTIONS, 'letters', lambda: lambda record, prompt, said: said.count('o') / 2)
  eight = call(capfd, name, *flags(request, name, base, tmp_path / 'eight'), *MESH, devices=8)
  assert eight.code == 0, eight.err
  one = call(capfd, name, *flags(request, name, base, tmp_path / 'one'))
  assert one.code == 0, one.err
  for ours, theirs in zip(lines(tmp_path / 'eight'), lines(tmp_path / 'one'), strict=True):
    assert ours.keys() == theirs.keys()
    for metric in ours.keys() - TIMES:
      np.testing.assert_allclose(ours[metric], theirs[metric], rtol=1e-4, atol=1e-6, err_msg=f'{metric} of {theirs}')


@pytest.mark.parametrize('draft', [[], ['--medusa={heads}']])
def test_decoding_on_eight_devices_is_that_on_one(draft, base, heads, tmp_path, capfd):  # noqa: F811
  draft = [text.format(heads=heads[0]) for text in draft]
  (tmp_path / 'prompts.jsonl').write_text(''.join(json.dumps({'prompt': f'{word} '}) + '\n' for word in ('the', 'fox')))
  said = []
  for mesh in ([], ['--mesh=data=2,fsdp=2,tensor=2']):
    out = tmp_path / f'{len(said)}.jsonl'
    how = [f'--prompts={tmp_path / "prompts.jsonl"}', f'--out={out}', '--max_new_tokens=20', '--temperature=0.8']
    ended = call(capfd, 'generate', f'--model={base}', *how, *draft, *mesh, devices=8)
    assert ended.code == 0, ended.err
    said.append([json.loads(line)['completion'] for line in out.read_text().splitlines()])
  assert said[0] == said[1] and len(said[0]) == 2 and len(said[0][0]) > 10


@pytest.mark.parametrize(
  ('mesh', 'message'),
  [
    ('tensor', '--mesh=tensor: write AXIS=SIZE, as in fsdp=2,tensor=4'),
    ('tensor=3', 'mesh sizes tensor=3 do not multiply to the 8 devices at hand'),
    ('heads=8', 'mesh.heads is no axis'),
  ],
)
def test_meshes_there_can_not_be(mesh, message, base, capfd):
  ended = call(capfd, 'generate', f'--model={base}', '--prompt=the', f'--mesh={mesh}', devices=8)
  assert ended.code == 2 and message in ended.err
