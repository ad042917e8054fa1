"""Names of models: what is fetched from the hub, and what a name that is none says."""

import pathlib

import huggingface_hub
import pytest

from gpt_jax.interop.pretrained import pretrained
from gpt_jax.types import UserError
from tests.interop.test_huggingface import saved


@pytest.fixture
def hub(monkeypatch, tmp_path):
  """A hub of one repository, whose files the test names; what was asked of it."""
  asked = []
  files = []

  def snapshot(repository, *, revision, allow_patterns):
    asked.append((repository, revision, sorted(allow_patterns)))
    return str(saved(tmp_path / 'snapshot'))

  monkeypatch.setattr(huggingface_hub.HfApi, 'list_repo_files', lambda self, repository, revision: files)
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot)
  return files, asked


def test_a_repository_with_safetensors(hub):
  files, asked = hub
  files += ['config.json', 'model.safetensors', 'pytorch_model.bin']
  assert pretrained('hf://owner/name').config == pretrained('hf://owner/name@v1.0').config
  assert [call[:2] for call in asked] == [('owner/name', None), ('owner/name', 'v1.0')]
  assert '*.safetensors' in asked[0][2] and 'tokenizer.json' in asked[0][2] and '*.bin' not in asked[0][2]


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    (['config.json', 'pytorch_model.bin'], 'pytorch_model.bin is a pickle, which can run code; choose a revision'),
    (['a.Q4_0.gguf'], 'name one of its files: hf://owner/name/a.Q4_0.gguf'),
    (['README.md'], 'has no safetensors; choose a revision that has them'),
  ],
)
def test_a_repository_without(hub, files, message):
  hub[0].extend(files)
  with pytest.raises(UserError, match=message):
    pretrained('hf://owner/name')
  assert hub[1] == []


def test_one_file_of_a_repository(monkeypatch, tmp_path):
  asked = []

  def download(repository, file, *, revision):
    asked.append((repository, file, revision))
    (tmp_path / 'x.gguf').write_bytes(b'GGUF')
    return str(tmp_path / 'x.gguf')

  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
  with pytest.raises(UserError, match='not a whole GGUF file'):
    pretrained('hf://owner/name@main/folder/x.gguf')
  assert asked == [('owner/name', 'folder/x.gguf', 'main')]


def test_without_a_network_what_was_fetched_is_used_and_else_it_is_one_line(monkeypatch, tmp_path):
  def fail(*_, **__):
    raise OSError('the line is dead\nand more')

  def kept(repository, *, revision, local_files_only):
    assert (repository, local_files_only) == ('owner/name', True)
    return str(saved(tmp_path / 'snapshot'))

  monkeypatch.setattr(huggingface_hub.HfApi, 'list_repo_files', fail)
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', kept)
  assert pretrained('hf://owner/name').layout.architecture == 'LlamaForCausalLM'
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', fail)
  with pytest.raises(UserError, match=r'^hf://owner/name could not be fetched \(the line is dead\)$'):
    pretrained('hf://owner/name')


@pytest.mark.parametrize('name', ['hf://', 'hf://owner', 'hf://a/b/c', 'hf://a/b@', 'hf://a/b/c.safetensors'])
def test_names_that_are_none_of_the_hubs(name):
  with pytest.raises(UserError, match=f'{name}.*is not of the form hf://OWNER/NAME'):
    pretrained(name)


def test_a_file_that_is_no_model(tmp_path):
  path = pathlib.Path(tmp_path / 'x.bin')
  path.write_bytes(b'')
  for name in (str(path), '/nowhere', '/nowhere.gguf'):
    with pytest.raises(UserError, match=r'is not a folder with config.json, a .gguf file or hf://OWNER/NAME'):
      pretrained(name)
