"""GGUF files that are broken in every way: one line each, and little memory."""

import functools
import re
import struct
import tracemalloc
from typing import Any

from gguf import GGMLQuantizationType as Kind
import numpy as np
import pytest

from gpt_jax.interop import gguf
from gpt_jax.interop import tensors as assembly
from gpt_jax.interop.gguf_header import read_header
from gpt_jax.interop.layouts import ggml
from gpt_jax.models.heads import parameter_shapes
from gpt_jax.types import UserError
from tests.interop.gguf_files import changed, saved

NAN, INFINITE = float('nan'), float('inf')
ONES = np.ones(4, np.float32)
WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
  'architecture': ({'general.architecture': 'lama'}, {}, "did you mean 'llama'?"),
  'part': ({'split.count': 3}, {}, 'join them by llama-gguf-split --merge'),
  'no field': ({'llama.block_count': None}, {}, 'has no llama.block_count'),
  'no heads': ({'llama.attention.head_count': 0}, {}, 'head_count = 0 is not a whole number from 1 to'),
  'layers': ({'llama.block_count': 10**9}, {}, 'block_count = 1000000000 is not a whole number from 1 to 4,096'),
  'more layers': ({'llama.block_count': 4000}, {}, 'has no tensor blk.2.'),
  'fewer layers': ({'llama.block_count': 1}, {}, 'has blk.1.'),
  'width': ({'llama.embedding_length': 2**20}, {}, 'its shape is (32, 48), not (1048576, 48)'),
  'hidden': ({'llama.feed_forward_length': 47}, {}, 'its shape is (32, 48), not (32, 47)'),
  'vocabulary': ({'llama.vocab_size': 2.5}, {}, 'vocab_size = 2.5 is not a whole number'),
  'no vocabulary': ({'llama.vocab_size': None}, {}, 'has no llama.vocab_size'),
  'text': ({'llama.embedding_length': 'wide'}, {}, "embedding_length = 'wide' is not a whole number"),
  'list': ({'llama.attention.head_count_kv': [2, 2]}, {}, 'head_count_kv = [2, 2] is not a whole number'),
  'groups': ({'llama.attention.head_count_kv': 3}, {}, 'num_heads = 4 must be a multiple of 3'),
  'odd': (
    {f'llama.{field}': 7 for field in ('attention.key_length', 'attention.value_length', 'rope.dimension_count')}, {},
    'key_length = 7 is odd',
  ),
  'epsilon': ({'llama.attention.layer_norm_rms_epsilon': NAN}, {}, 'rms_epsilon = nan is not a positive number'),
  'base': ({'llama.rope.freq_base': INFINITE}, {}, 'freq_base = inf is not a positive number'),
  'negative base': ({'llama.rope.freq_base': -1.0}, {}, 'freq_base = -1.0 is not a positive number'),
  'tiny epsilon': ({'llama.attention.layer_norm_rms_epsilon': 0.0}, {}, 'rms_epsilon = 0.0 is not a positive number'),
  'context': ({'llama.context_length': 0}, {}, 'context_length = 0 is not a whole number'),
  'half rotated': ({'llama.rope.dimension_count': 4}, {}, 'dimension_count = 4 is not supported, only 8'),
  'experts': ({'llama.expert_count': 8}, {}, 'expert_count = 8 is not supported, only 0'),
  'yarn': ({'llama.rope.scaling.type': 'yarn'}, {}, "scaling.type = 'yarn' is not supported"),
  'no factor': ({'llama.rope.scaling.type': 'linear'}, {}, 'has no llama.rope.scaling.factor'),
  'divisors': ({}, {'rope_freqs.weight': ONES[:3]}, 'rope_freqs.weight should be 4 positive numbers'),
  'negative divisor': ({}, {'rope_freqs.weight': -ONES}, 'rope_freqs.weight should be 4 positive numbers'),
  'two scalings': ({'llama.rope.scaling.factor': 2.0}, {'rope_freqs.weight': ONES}, 'and without llama.rope.scaling'),
  'all huge': (
    {f'llama.{field}': most for field, most in ggml.MOST.items() if field not in ('context_length', 'block_count')}
    | {'llama.attention.value_length': 2**12, 'llama.rope.dimension_count': 2**12}, {},
    'its shape is (16, 32), not (16777216, 1048576)',
  ),
  'no tensor': ({}, {'output_norm.weight': None}, 'has no tensor output_norm'),
  'left over': ({}, {'blk.0.attn_q.bias': ONES}, 'has blk.0.attn_q.bias, for which'),
  'shape': (
    {}, {'output_norm.weight': np.ones((1, 32), np.float32)},
    'tensor output_norm.weight: its shape is (1, 32), not (32,)',
  ),
  'type': (
    {}, {'output.weight': (np.zeros((31, 66), np.uint8), Kind.IQ2_XXS)},
    'tensor output.weight is in IQ2_XXS, which is not supported; known: F32, F16',
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', WRONG)
def test_a_wrong_file_is_one_line(name, tmp_path):
  metadata, stored, message = WRONG[name]
  path = changed(saved(tmp_path / 'a'), metadata, stored, tmp_path / 'b')
  with pytest.raises(UserError, match=re.escape(message)) as raised:
    gguf.read(path).load()
  assert '\n' not in str(raised.value) and str(path) in str(raised.value)


def one_value(key: bytes = b'k', kind: int = 4, value: bytes = b'\0' * 4, tensors: int = 0, values: int = 1) -> bytes:
  head = b'GGUF' + struct.pack('<IQQ', 3, tensors, values)
  return head + struct.pack('<Q', len(key)) + key + struct.pack('<I', kind) + value


def one_tensor(name: bytes, rank: int, shape: tuple, kind: int = 0, start: int = 0, data: int = 64) -> bytes:
  head = b'GGUF' + struct.pack('<IQQQ', 3, 1, 0, len(name)) + name
  head += struct.pack('<I', rank) + struct.pack(f'<{len(shape)}Q', *shape) + struct.pack('<IQ', kind, start)
  return head + b'\0' * (-len(head) % 32 + data)


CRAFTED = {
  'nothing': (b'', '4 bytes should follow, but there are 0'),
  'another format': (b'PK\3\4' + bytes(40), 'it does not begin with GGUF'),
  'old version': (b'GGUF' + struct.pack('<IQQ', 1, 0, 0), 'version 1 is not 2 or 3'),
  'big-endian': (b'GGUF' + struct.pack('>IQQ', 3, 0, 0), 'of little-endian machines'),
  'many tensors': (one_value(tensors=2**63), 'no room for 9,223,372,036,854,775,808 tensors'),
  'many values': (one_value(values=2**64 - 1), 'no room for 0 tensors and 18,446,744,073,709,551,615 values'),
  'long name': (b'GGUF' + struct.pack('<IQQQ', 3, 0, 1, 2**60) + bytes(99), 'here should be a name'),
  'two lines': (one_value(b'a\nb'), 'here should be a name'),
  'unknown type': (one_value(kind=77), '77 is not a valid GGUFValueType'),
  'long text': (one_value(kind=8, value=struct.pack('<Q', 2**40)), 'a text of 1,099,511,627,776 bytes'),
  'cut text': (one_value(kind=8, value=struct.pack('<Q', 99)), '99 bytes should follow, but there are 0'),
  'long list': (one_value(kind=9, value=struct.pack('<IQ', 0, 2**50)), 'a list of 1,125,899,906,842,624 values'),
  'cut list': (one_value(kind=9, value=struct.pack('<IQ', 4, 2**22)), '16,777,216 bytes should follow'),
  'nested lists': (one_value(kind=9, value=struct.pack('<IQ', 9, 1) * 2), 'a list of lists'),
  'no UTF-8': (one_value(kind=8, value=struct.pack('<Q', 1) + b'\xff'), "codec can't decode"),
  'twice': (one_value(values=2) + one_value()[24:], 'k stands there twice'),
  'alignment': (one_value(b'general.alignment', value=struct.pack('<I', 0)), 'general.alignment = 0'),
  'axes': (one_tensor(b'a', 5, (1,) * 5), 'a tensor of 5 axes'),
  'no numbers': (one_tensor(b'a', 2, (0, 4)), 'can not be of shape (4, 0) in F32'),
  'huge': (one_tensor(b'a', 2, (2**32, 2**32)), 'is cut off'),
  'half a block': (one_tensor(b'a', 1, (31,), kind=8), 'can not be of shape (31,) in Q8_0'),
  'tensor type': (one_tensor(b'a', 1, (4,), kind=200), '200 is not a valid GGMLQuantizationType'),
  'start': (one_tensor(b'a', 1, (4,), start=32), 'tensor a starts at 32, not 0'),
  'no architecture': (one_tensor(b'a', 1, (4,)), "general.architecture = 'None' is unknown; known: llama, gpt2"),
}


@pytest.mark.parametrize('name', CRAFTED)
def test_a_crafted_file_is_one_line(name, tmp_path):
  path, (data, message) = tmp_path / 'model.gguf', CRAFTED[name]
  path.write_bytes(data)
  with pytest.raises(UserError, match=re.escape(message)) as raised:
    gguf.read(path)
  assert '\n' not in str(raised.value) and str(path) in str(raised.value)


@pytest.mark.parametrize('name', ['absent.gguf', '.'])
def test_no_file_is_one_line(name, tmp_path):
  with pytest.raises(UserError, match='can not be read'):
    gguf.read(tmp_path / name)


def test_a_file_that_shrinks_or_goes_after_it_was_opened(tmp_path):
  path = saved(tmp_path / 'model.gguf')
  pretrained = gguf.read(path)
  path.write_bytes(path.read_bytes()[:-2000])
  with pytest.raises(UserError, match='has become shorter'):
    pretrained.load()
  path.unlink()
  with pytest.raises(UserError, match='can not be read'):
    pretrained.load()


def test_two_hundred_and_forty_broken_files_are_one_line_each_and_little_memory(tmp_path, monkeypatch):
  """Cut anywhere, bits and bytes turned in the header, numbers there made huge: refused, or read as something whole."""
  monkeypatch.setattr(assembly, 'parameter_shapes', functools.cache(parameter_shapes))
  path = saved(tmp_path / 'model.gguf')
  whole = path.read_bytes()
  header = min(stored.start for stored in read_header(path).tensors.values())
  rng = np.random.default_rng(0)
  refused = 0
  tracemalloc.start()
  for case in range(240):
    data = bytearray(whole)
    place = rng.integers(0, header - 8)
    if case % 4 == 0:
      data = data[: rng.integers(0, len(data))]
    elif case % 4 == 1:
      data[place] ^= 1 << rng.integers(0, 8)
    elif case % 4 == 2:
      data[place : place + 8] = int(rng.integers(0, 2**62)).to_bytes(8, 'little')
    else:
      data[place : place + 4] = rng.integers(0, 256, 4, np.uint8).tobytes()
    path.write_bytes(data)
    try:
      gguf.read(path).load()
    except UserError as error:
      refused += 1
      assert '\n' not in str(error) and str(path) in str(error)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert refused > 200
  assert peak < 64e6
