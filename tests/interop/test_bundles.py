"""A checkpoint of TensorFlow, and tables of our own writing that are whole or wrong in every way."""

import pathlib
import re

import google_crc32c
import numpy as np
import pytest
from safetensors.numpy import load_file

from gpt_jax.interop import bundles
from gpt_jax.types import UserError

INDEX, DATA = 'model.ckpt.index', 'model.ckpt.data-00000-of-00001'


def test_numbers_are_those_that_tensorflow_reads():
  made = pathlib.Path(__file__).parent / 'data' / 'gpt2_original'
  expected = load_file(made / 'expected.safetensors')
  tensors = bundles.tensors(made / 'model.ckpt')
  assert set(tensors) == set(expected) - {'tokens', 'logits'}
  for name, read in tensors.items():
    np.testing.assert_array_equal(read(), expected[name], strict=True)


def varint(number: int) -> bytes:
  return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def field(number: int, value: int | bytes) -> bytes:
  return varint(number << 3) + varint(value) if isinstance(value, int) else (
    varint(number << 3 | 2) + varint(len(value)) + value)  # fmt: skip


def masked(data: bytes) -> bytes:
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, 'little')


def tensor(array: np.ndarray, offset: int, **changed) -> bytes:
  """A BundleEntryProto."""
  shape = b''.join(field(2, field(1, length)) for length in array.shape)
  fields = {'dtype': (1, 1), 'shape': (2, shape), 'offset': (4, offset), 'size': (5, array.nbytes)}
  message = b''.join(field(*pair) for pair in (fields | changed).values())
  return message + varint(6 << 3 | 5) + masked(array.tobytes())


def block(pairs: dict[bytes, bytes], kind: int = 0, every: int = 3) -> bytes:
  """Every third key is whole."""
  content, whole, last = b'', [], b''
  for place, (key, value) in enumerate(pairs.items()):
    if place % every == 0:
      whole.append(len(content))
      last = b''
    shared = next((i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), min(len(key), len(last)))
    content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
    last = key
  content += b''.join(at.to_bytes(4, 'little') for at in [*whole, len(whole)]) + bytes([kind])
  return content + masked(content)


def table(*blocks: dict[bytes, bytes], kind: int = 0) -> bytes:
  """An index; a block is listed under its last key."""
  content, handles = b'', {}
  for pairs in blocks:
    one = block(pairs, kind)
    handles[max(pairs)] = varint(len(content)) + varint(len(one) - 5)
    content += one
  return content + end(handles, len(content))


def end(handles: dict[bytes, bytes], at: int) -> bytes:
  nothing, index = block({}), block(handles)
  footer = varint(at) + varint(len(nothing) - 5) + varint(at + len(nothing)) + varint(len(index) - 5)
  return nothing + index + footer.ljust(40, b'\0') + 0xDB4775248B80FB57.to_bytes(8, 'little')


HEADER = {b'': field(1, 1) + field(3, field(1, 1))}
NUMBERS = np.random.default_rng(0).standard_normal((40, 2, 3)).astype(np.float32)
ENTRIES = {b'model/h%02d' % i: tensor(NUMBERS[i], 24 * i) for i in range(40)}


def write(folder: pathlib.Path, index: bytes) -> pathlib.Path:
  folder.mkdir(exist_ok=True)
  (folder / INDEX).write_bytes(index)
  (folder / DATA).write_bytes(NUMBERS.tobytes())
  return folder / 'model.ckpt'


def test_a_table_of_several_blocks(tmp_path):
  pairs = list((HEADER | ENTRIES).items())
  blocks = [dict(pairs[start : start + 7]) for start in range(0, 41, 7)]
  tensors = bundles.tensors(write(tmp_path, table(*blocks)))
  assert list(tensors) == [key.decode() for key in ENTRIES]
  np.testing.assert_array_equal([read() for read in tensors.values()], NUMBERS)


def one(message: bytes) -> bytes:
  return table(HEADER | {b'model/wte': message})


SOME, FIRST = NUMBERS[0], block(HEADER)
WRONG = {
  'no header': (table(ENTRIES), 'it has no header'),
  'nothing': (table(), 'it has no header'),
  'two files': (table({b'': field(1, 2)} | ENTRIES), '2 data files is not supported'),
  'big-endian': (table({b'': field(1, 1) + field(2, 1)}), 'big-endian numbers is not supported'),
  'compressed': (table(HEADER | ENTRIES, kind=1), 'its blocks are compressed, which is not supported'),
  'half precision': (one(tensor(SOME, 0, dtype=(1, 19))), "'model/wte' is type 19 of types.proto"),
  'no type': (one(b''), "'model/wte' is type 0 of types.proto"),
  'slices': (one(tensor(SOME, 0) + field(7, b'')), 'is a tensor in slices'),
  'size': (one(tensor(SOME, 0, size=(5, 20))), 'has another size than its shape'),
  'negative shape': (
    one(tensor(SOME, 0, shape=(2, field(2, field(1, 2**64 - 2)) + field(2, field(1, 2**64 - 3))))), 'another size'
  ),
  'many axes': (one(tensor(SOME, 0, shape=(2, field(2, field(1, 1)) * 70 + field(2, field(1, 6))))), 'another size'),
  'offset': (one(tensor(SOME, 2**40)), 'ends before tensor model/wte'),
  'negative offset': (one(tensor(SOME, 2**64 - 8)), 'ends before tensor model/wte'),
  'order': (table(HEADER | {b'b': ENTRIES[b'model/h01'], b'a': ENTRIES[b'model/h00']}), 'not in order'),
  'name': (table(HEADER | {b'a\nb': tensor(SOME, 0)}), "'a\\nb' is no name"),
  'bytes for a name': (table(HEADER | {b'\xff': tensor(SOME, 0)}), 'not the index of a checkpoint'),
  'long name': (table(HEADER | {b'a' * 1025: tensor(SOME, 0)}), 'an entry of an impossible length'),
  'field beyond': (one(b'\x12\x7f'), 'a message ends within a field'),
  'endless number': (one(b'\x08' + b'\xff' * 12), 'a number has no end'),
  'group': (one(b'\x0b'), 'a field of no known kind'),
  'a block again and again': (
    FIRST + end({b'%06d' % i: varint(0) + varint(len(FIRST) - 5) for i in range(1000)}, len(FIRST)),
    'its blocks overlap',
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', WRONG)
def test_a_wrong_table_is_one_line(name, tmp_path):
  index, message = WRONG[name]
  prefix = write(tmp_path, index)
  with pytest.raises(UserError, match=re.escape(message)) as raised:
    bundles.tensors(prefix)
  assert '\n' not in str(raised.value) and str(tmp_path) in str(raised.value)


def test_five_hundred_broken_tables_are_one_line_each(tmp_path):
  """Cut, bits turned, bytes replaced anywhere; in half of them checksums are made right again, as an attacker would."""
  rng = np.random.default_rng(0)
  prefix = write(tmp_path, b'')
  pairs = HEADER | ENTRIES
  refusals = 0
  for case in range(500):
    content = bytearray(block(pairs)[:-5])
    if case % 2:
      start, width = rng.integers(len(content)), rng.integers(1, 9)
      content[start : start + width] = rng.bytes(rng.integers(9)) if case % 4 == 1 else bytes([255] * width)
      if case % 10 == 1:  # the number of whole keys
        content[-4:] = rng.bytes(4)
      whole = bytes(content) + b'\0'
      handle = rng.bytes(rng.integers(1, 12)) if case % 10 == 3 else varint(0) + varint(len(content))
      index = whole + masked(whole) + end({b'model/h39': handle}, len(whole) + 4)
    else:
      index = bytearray(table(pairs))
      if case % 4 == 0:
        index = index[: rng.integers(len(index))]
      elif case % 8 == 2:
        index[rng.integers(len(index))] ^= 1 << rng.integers(8)
      else:  # the footer
        index[rng.integers(-48, 0)] = rng.integers(256)
    prefix.with_name(INDEX).write_bytes(index)
    try:
      for read in bundles.tensors(prefix).values():
        read()
    except UserError as error:
      refusals += 1
      assert '\n' not in str(error)
  assert refusals > 350
