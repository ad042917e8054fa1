"""Checksums by the standard, and bit by bit."""

import numpy as np

from gpt_jax.interop.crc32c import crc32c


def test_checksums_of_the_standard():
  """RFC 3720, appendix B.4, there with the bytes of the sums in order."""
  for data, expected in (
    (bytes(32), 'aa36918a'), (b'\xff' * 32, '43aba862'), (bytes(range(32)), '4e79dd46'),
    (bytes(range(31, -1, -1)), '5cdb3f11'),
  ):  # fmt: skip
    assert crc32c(data).to_bytes(4, 'little').hex() == expected
  assert crc32c(b'123456789') == 0xE3069283 and crc32c(b'') == 0


def test_checksums_of_any_length_are_those_bit_by_bit(monkeypatch):
  monkeypatch.setattr('gpt_jax.interop.crc32c.PIECE', 64)
  data = np.random.default_rng(0).bytes(300)
  state = 0xFFFFFFFF
  for length, byte in enumerate(data):
    assert crc32c(data[:length]) == state ^ 0xFFFFFFFF
    state ^= byte
    for _ in range(8):
      state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
