"""Quantised blocks, decoded by hand from what ggml says of their bits."""

from collections.abc import Callable
import struct

import gguf as library
from gguf import GGMLQuantizationType as Kind
import jax
import numpy as np
import pytest

from gpt_jax.interop import gguf
from gpt_jax.models.families import FAMILIES
from tests.interop.gguf_files import GROUPED, changed, saved, tensors
from tests.models.small import parameters, shrunk


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
