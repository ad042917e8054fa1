"""GGUF files of our writing read again, quantised blocks decoded by hand, and files that are broken in every way."""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
import re
import struct
import subprocess
import sys
import tracemalloc
from typing import Any

import gguf as library
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, GGUFWriter
import jax
import numpy as np
import pytest

from gpt_jax.data import assets, bpe
from gpt_jax.interop import gguf
from gpt_jax.interop import tensors as assembly
from gpt_jax.interop.gguf_header import read_header
from gpt_jax.interop.layouts import ggml
from gpt_jax.models.families import FAMILIES
from gpt_jax.models.heads import LanguageModel, parameter_shapes
from gpt_jax.models.positions import LinearScaling, Llama3Scaling, NtkScaling, Rotary
from gpt_jax.models.transformer import TransformerConfig, unstack
from gpt_jax.types import UserError
from tests.models.small import logits, parameters, random_tokens, shrunk

MODELS = {
  'grouped, untied': shrunk('llama2_70b'),
  'tied': shrunk('smollm2_135m'),
  'multi-head, wide heads': shrunk('llama2_7b', head_dim=10),
  'multi-query, linear scaling': shrunk('llama2_7b', num_kv_heads=1, rotation=Rotary(5e5, scaling=LinearScaling(4.0))),
  'gpt2': shrunk('gpt2_small'),
  'gpt2, untied': shrunk('gpt2_small', tie_embeddings=False),
}
GROUPED, TIED, GPT2 = MODELS['grouped, untied'], MODELS['tied'], MODELS['gpt2']


def saved(path: pathlib.Path, config: TransformerConfig = GROUPED, **options) -> pathlib.Path:
  gguf.save(path, config, parameters(config), **options)
  return path


def tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  """As the library reads them."""
  return {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}


# ---- out and in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', MODELS)
def test_what_is_written_is_read_again_bit_for_bit(name, tmp_path):
  config = MODELS[name]
  pretrained = gguf.read(saved(tmp_path / 'model.gguf', config, context=77))
  model, params = pretrained.load()
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, dict(parameters(config)))
  jax.tree.map(np.testing.assert_array_equal, params, parameters(config))
  for field in ('mlp', 'residual', 'norm', 'rotation', 'tie_embeddings', 'use_bias', 'attention', 'head_width'):
    assert getattr(model.config, field) == getattr(config, field), field
  assert pretrained.context == (16 if 'gpt2' in name else 77)


def test_looped_layers_are_read_and_written_as_well(tmp_path):
  looped = dataclasses.replace(GROUPED, stacked=False)
  gguf.save(tmp_path / 'model.gguf', looped, unstack(parameters(GROUPED)))
  _, params = gguf.read(tmp_path / 'model.gguf').load(stacked=False)
  jax.tree.map(np.testing.assert_array_equal, params, unstack(parameters(GROUPED)))


def test_half_precision_rounds_matrices_and_leaves_vectors(tmp_path):
  path = saved(tmp_path / 'model.gguf', dtype='float16')
  _, params = gguf.read(path).load()
  rounded = jax.tree_util.tree_map_with_path(
    lambda path, x: x if path[-1].key == 'scale' else x.astype('float16').astype('float32'), dict(parameters(GROUPED))
  )
  jax.tree.map(np.testing.assert_array_equal, params, rounded)
  assert {t.dtype for name, t in tensors(path).items() if 'norm' in name} == {np.dtype('float32')}


def test_neighbours_in_the_file_are_half_a_head_apart_here(tmp_path):
  """The order of llama.cpp's converter, row by row."""
  stored = tensors(saved(tmp_path / 'model.gguf'))
  block = parameters(GROUPED)['params']['transformer']['blocks']['block_0']
  width = GROUPED.head_width
  for layer in range(GROUPED.num_layers):
    for theirs, ours in (('attn_q', 'query'), ('attn_k', 'key')):
      kernel = np.asarray(block['attention'][ours]['kernel'][layer])
      for head in range(kernel.shape[1]):
        for pair in range(width // 2):
          for half in range(2):
            row = stored[f'blk.{layer}.{theirs}.weight'][head * width + 2 * pair + half]
            np.testing.assert_array_equal(row, kernel[:, head, pair + half * width // 2])
    value = np.asarray(block['attention']['value']['kernel'][layer])
    np.testing.assert_array_equal(stored[f'blk.{layer}.attn_v.weight'], value.reshape(len(value), -1).T)


@pytest.mark.parametrize('scaling', [Llama3Scaling(8.0, 1.0, 4.0, 32), NtkScaling(3.0)])
def test_other_scalings_become_a_divisor_for_each_pair(scaling, tmp_path):
  config = shrunk('llama2_70b', rotation=Rotary(500.0, scaling=scaling))
  path = saved(tmp_path / 'model.gguf', config)
  expected = Rotary(500.0).frequencies(8) / Rotary(500.0, scaling=scaling).frequencies(8)
  np.testing.assert_allclose(tensors(path)['rope_freqs.weight'], expected, rtol=1e-6)
  model, params = gguf.read(path).load()
  tokens = random_tokens()
  found = logits(model.config, params, tokens)
  np.testing.assert_allclose(found, logits(config, parameters(config), tokens), atol=1e-5)
  assert np.abs(found - logits(GROUPED, params, tokens)).max() > 1e-3
  saved(tmp_path / 'again.gguf', model.config)
  assert gguf.read(tmp_path / 'again.gguf').config == model.config


def test_header_is_what_the_library_reads(tmp_path, monkeypatch):
  vocabulary = {'tokenizer.ggml.tokens': ['a', 'ü'], 'tokenizer.ggml.scores': [0.5, -1.0], 'tokenizer.ggml.pre': 'x'}
  monkeypatch.setattr(gguf, 'write_vocabulary', lambda _, size: vocabulary | {'tokenizer.ggml.add_bos_token': True})
  path = saved(tmp_path / 'model.gguf', dtype='float16')
  header, reader = read_header(path), GGUFReader(path)
  fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith('GGUF.')}
  assert header.metadata == fields
  assert header.metadata['llama.attention.layer_norm_rms_epsilon'] == np.float32(1e-5)
  theirs = {t.name: (t.tensor_type, tuple(t.shape[::-1].tolist()), t.data_offset, t.n_bytes) for t in reader.tensors}
  assert {name: (t.kind, t.shape, t.start, t.size) for name, t in header.tensors.items()} == theirs


def test_vocabulary_has_a_token_for_every_row(tmp_path):
  path, config = tmp_path / 'model.gguf', shrunk('llama2_70b', vocab_size=261)
  assert read_header(saved(path, config)).metadata['tokenizer.ggml.model'] == 'none'
  files = bpe.train(['ab'], 258).dump()
  gguf.save(path, config, parameters(config), files=files)
  metadata = read_header(path).metadata
  assert metadata['tokenizer.ggml.tokens'][-3:] == ['[PAD258]', '[PAD259]', '[PAD260]']
  assert metadata['tokenizer.ggml.token_type'] == [3] + [1] * 257 + [5] * 3
  small = shrunk('llama2_70b')
  with pytest.raises(UserError, match='has 258 tokens and the model 31') as raised:
    gguf.save(tmp_path / 'other.gguf', small, parameters(small), files=files)
  assert str(tmp_path / 'other.gguf') in str(raised.value)


@pytest.mark.parametrize('family', ['gpt1', 'gpt3_125m', 'glm_large', 'falcon_7b', 'chatglm2_6b'])
def test_a_model_that_no_layout_can_say_is_refused(family, tmp_path):
  config = shrunk(family)
  with pytest.raises(UserError, match='can not say this model'):
    gguf.save(tmp_path / 'model.gguf', config, parameters(config))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('fault', ['number', 'disk', 'dtype'])
def test_a_failure_leaves_the_file_that_was_there(fault, tmp_path, monkeypatch):
  path = saved(tmp_path / 'model.gguf', TIED)
  before = path.read_bytes()
  params = jax.tree.map(lambda x: x * (1e6 if fault == 'number' else 1), dict(parameters(GROUPED)))
  if fault == 'disk':
    monkeypatch.setattr(GGUFWriter, 'write_tensor_data', lambda *_: (_ for _ in ()).throw(OSError(28, 'No space')))
  message = {'number': 'too large for float16; use float32', 'disk': 'No space', 'dtype': "did you mean 'float16'"}
  with pytest.raises(UserError, match=message[fault]):
    gguf.save(path, GROUPED, params, dtype='float61' if fault == 'dtype' else 'float16')
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]


# ---- quantised ------------------------------------------------------------------------------------------------------


def half(data: bytes) -> float:
  return struct.unpack('<e', data)[0]


def nibbles(data: bytes) -> list[int]:
  return [byte & 15 for byte in data] + [byte >> 4 for byte in data]


def five_bits(high: bytes, low: bytes) -> list[int]:
  bits = int.from_bytes(high, 'little')
  return [number + 16 * (bits >> place & 1) for place, number in enumerate(nibbles(low))]


def scales_and_minima(data: bytes) -> list[tuple[int, int]]:
  """Eight scales and eight minima of 6 bits in 12 bytes."""
  pairs = [(data[j] & 63, data[j + 4] & 63) for j in range(4)]
  high = [(data[j + 8] & 15 | data[j] >> 6 << 4, data[j + 8] >> 4 | data[j + 4] >> 6 << 4) for j in range(4)]
  return pairs + high


def k_block(data: bytes, high: bytes, low: bytes) -> list[float]:
  scale, least = half(data[:2]), half(data[2:4])
  numbers = []
  for place in range(8):
    part = nibbles(low[32 * (place // 2) : 32 * (place // 2 + 1)])[32 * (place % 2) :][:32]
    part = [number + 16 * (high[i] >> place & 1) for i, number in enumerate(part)]
    of_scale, of_least = scales_and_minima(data[4:16])[place]
    numbers += [scale * of_scale * number - least * of_least for number in part]
  return numbers


def q6_block(b: bytes) -> list[float]:
  numbers = []
  for side in range(2):
    low, high = b[64 * side : 64 * side + 64], b[128 + 32 * side : 160 + 32 * side]
    scales = struct.unpack('8b', b[192 + 8 * side : 200 + 8 * side])
    for i, number in enumerate(nibbles(low)):
      number |= (high[i % 32] >> 2 * (i // 32) & 3) << 4  # noqa: PLW2901
      numbers.append(half(b[208:]) * scales[i // 16] * (number - 32))
  return numbers


BLOCKS: dict[Kind, tuple[int, Callable[[bytes], list[float]]]] = {
  Kind.F32: (4, lambda b: list(struct.unpack('<f', b))),
  Kind.F16: (2, lambda b: [half(b)]),
  Kind.BF16: (2, lambda b: list(struct.unpack('<f', b'\0\0' + b))),
  Kind.Q8_0: (34, lambda b: [half(b[:2]) * number for number in struct.unpack('32b', b[2:])]),
  Kind.Q4_0: (18, lambda b: [half(b[:2]) * (number - 8) for number in nibbles(b[2:])]),
  Kind.Q4_1: (20, lambda b: [half(b[:2]) * number + half(b[2:4]) for number in nibbles(b[4:])]),
  Kind.Q5_0: (22, lambda b: [half(b[:2]) * (number - 16) for number in five_bits(b[2:6], b[6:])]),
  Kind.Q5_1: (24, lambda b: [half(b[:2]) * number + half(b[2:4]) for number in five_bits(b[4:8], b[8:])]),
  Kind.Q4_K: (144, lambda b: k_block(b[:16], bytes(32), b[16:])),
  Kind.Q5_K: (176, lambda b: k_block(b[:16], b[16:48], b[48:])),
  Kind.Q6_K: (210, q6_block),
}
"""Bytes of a block, and what numbers it holds, by ggml's own description of its bits."""

SQUARE = shrunk('llama2_70b', model_dim=256, mlp=FAMILIES['llama2_70b'].mlp.copy(hidden=256), num_layers=1)


def changed(path: pathlib.Path, metadata: dict[str, Any], stored: dict[str, Any], to: pathlib.Path) -> pathlib.Path:
  """A file with other metadata (None: without it) and other tensors: arrays, or bytes of a type in rows."""
  reader = GGUFReader(path)
  writer = GGUFWriter(to, metadata.get('general.architecture', reader.fields['general.architecture'].contents()))
  for name, field in reader.fields.items():
    if not name.startswith('GGUF.') and name != 'general.architecture' and name not in metadata:
      sub_type = field.types[1] if len(field.types) > 1 else None
      writer.add_key_value(name, field.contents(), field.types[0], sub_type)
  for name, value in metadata.items():
    if value is not None and name != 'general.architecture':
      writer.add_key_value(name, value, gguf._value_type(value))
  for name, value in ({tensor.name: tensor.data for tensor in reader.tensors} | stored).items():
    if value is not None:
      data, kind = value if isinstance(value, tuple) else (np.array(value), None)
      writer.add_tensor(name, data, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return to


def random_blocks(kind: Kind, rows: int, numbers: int) -> np.ndarray:
  """Any bits, but for scales, which are made small."""
  size, _ = BLOCKS[kind]
  block = library.GGML_QUANT_SIZES[kind][0]
  blocks = np.random.default_rng(0).integers(0, 256, (rows * numbers // block, size), np.uint8)
  halves = {Kind.F32: [2], Kind.Q6_K: [208], Kind.Q4_1: [0, 2], Kind.Q5_1: [0, 2], Kind.Q4_K: [0, 2], Kind.Q5_K: [0, 2]}
  for place in halves.get(kind, [0]):
    blocks[:, place + 1] = blocks[:, place + 1] & 0x83 | 0x28  # an exponent about -5; BF16's and F32's are of 8 bits
  return blocks.reshape(rows, -1)


@pytest.mark.parametrize('kind', BLOCKS, ids=lambda kind: kind.name)
def test_blocks_are_decoded_as_they_are_described(kind, tmp_path):
  data = random_blocks(kind, SQUARE.vocab_size, 256)
  size, decode = BLOCKS[kind]
  path = changed(saved(tmp_path / 'a', SQUARE), {}, {'token_embd.weight': (data, kind)}, tmp_path / 'b')
  flat = data.tobytes()
  expected = [number for at in range(0, len(flat), size) for number in decode(flat[at : at + size])]
  _, params = gguf.read(path).load()
  found = params['params']['transformer']['embed']['embedding']
  np.testing.assert_allclose(found, np.reshape(expected, (-1, 256)), rtol=1e-5, atol=1e-7)
  assert np.isfinite(found).all() and np.std(found) > 0


def test_every_kind_that_is_read_is_tested():
  assert set(BLOCKS) == set(gguf.READABLE)


def test_quantised_queries_are_unpermuted_after_they_are_decoded(tmp_path):
  """A tensor of many pieces, in a type the library can write."""
  path = saved(tmp_path / 'a', SQUARE)
  kernels = {name: tensor for name, tensor in tensors(path).items() if tensor.ndim > 1}
  packed = {name: (library.quants.quantize(t, Kind.Q8_0), Kind.Q8_0) for name, t in kernels.items()}
  _, params = gguf.read(changed(path, {}, packed, tmp_path / 'b')).load()
  for ours, exact in zip(jax.tree.leaves(params), jax.tree.leaves(dict(parameters(SQUARE))), strict=True):
    np.testing.assert_allclose(ours, exact, atol=np.abs(exact).max() / 250)


@pytest.mark.parametrize('piece', [1, 300, 5000])
def test_pieces_do_not_show(piece, tmp_path, monkeypatch):
  path = saved(tmp_path / 'model.gguf')
  monkeypatch.setattr(gguf, 'PIECE', piece)
  jax.tree.map(np.testing.assert_array_equal, gguf.read(path).load()[1], parameters(GROUPED))


def test_repeated_embeddings_are_a_tied_model_and_others_are_not(tmp_path):
  path = saved(tmp_path / 'a', GPT2)
  embeddings = tensors(path)['token_embd.weight']
  again = changed(path, {}, {'output.weight': embeddings}, tmp_path / 'b')
  model, params = gguf.read(again).load()
  assert model.config.tie_embeddings
  jax.tree.map(np.testing.assert_array_equal, params, parameters(GPT2))
  other = embeddings.copy()
  other[-1, -1] += 1
  model, params = gguf.read(changed(path, {}, {'output.weight': other}, tmp_path / 'c')).load()
  assert not model.config.tie_embeddings
  np.testing.assert_array_equal(params['params']['unembed']['embedding'], other)


# ---- what is refused ------------------------------------------------------------------------------------------------

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
  'width': ({'llama.embedding_length': 2**20}, {}, 'its shape is (16, 32), not (16, 1048576)'),
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


# ---- the real one ---------------------------------------------------------------------------------------------------

MEASURE = """
import sys, jax
from gpt_jax.interop import gguf
def status(key):
  return next(int(line.split()[1]) * 1024 for line in open('/proc/self/status') if line.startswith(key))
jax.block_until_ready(jax.numpy.zeros(3) + 1)
before = status('VmRSS')
open('/proc/self/clear_refs', 'w').write('5')
_, params = gguf.read(sys.argv[1]).load()
print((status('VmHWM') - before) / sum(x.nbytes for x in jax.tree.leaves(params)))
"""


@pytest.fixture(scope='module')
def smollm2() -> pathlib.Path:
  (path,) = assets.asset('smollm2').rglob('*.gguf')
  return path


@pytest.mark.assets
def test_smollm2_is_the_family_of_its_name(smollm2):
  pretrained = gguf.read(smollm2)
  family = FAMILIES['smollm2_135m']
  assert dataclasses.replace(pretrained.config, head_dim=None, init=family.init) == family
  assert pretrained.context == 8192
  shapes = parameter_shapes(LanguageModel(pretrained.config))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == 134_515_008


@pytest.mark.assets
@pytest.mark.skipif(sys.platform != 'linux', reason='memory is read from /proc')
def test_smollm2_is_loaded_in_little_more_memory_than_it_takes(smollm2):
  ran = subprocess.run([sys.executable, '-c', MEASURE, str(smollm2)], capture_output=True, text=True, check=True)
  assert 1 <= float(ran.stdout) < 1.3
