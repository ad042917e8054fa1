"""How a tensor of another library holds parameters of ours: values that read and write.

Ours come as matrices [inputs, outputs] or vectors (see `flattened`), theirs as they stand in a file.
"""

from collections.abc import Sequence
import dataclasses
from typing import Protocol, runtime_checkable

from jaxtyping import Int, Shaped
import numpy as np

Tensor = Shaped[np.ndarray, '...']
Shape = tuple[int, ...]


@runtime_checkable
class Form(Protocol):
  """One tensor of theirs and one or more of ours."""

  def read(self, tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """Ours, of these shapes.

    Raises:
      ValueError: the tensor does not hold arrays of these shapes.
    """
    ...

  def write(self, parts: Sequence[Tensor]) -> Tensor: ...


def flattened(path: str, shape: Shape) -> Shape:
  """The shape of one layer's parameter as a matrix [inputs, outputs] or a vector: heads and their widths joined.

  What is stored of a quantised kernel stays as it is.
  """
  if '/kernel/' in path:
    return shape
  if path.endswith('attention/out/kernel'):
    return (shape[0] * shape[1], *shape[2:])
  if path.endswith(('kernel', 'embedding', 'table')):
    return (shape[0], int(np.prod(shape[1:])))
  return (int(np.prod(shape)),)


def _same(tensor: Tensor, shape: Shape) -> Tensor:
  if tensor.shape != shape:
    raise ValueError(f'its shape is {tensor.shape}, not {shape}')
  return tensor


@dataclasses.dataclass(frozen=True)
class Same:
  """As ours: embeddings, norms, biases, and the kernels of GPT-1 and GPT-2, which are stored [inputs, outputs]."""

  def read(self, tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    return [_same(tensor, shapes[0])]

  def write(self, parts: Sequence[Tensor]) -> Tensor:
    return parts[0]


@dataclasses.dataclass(frozen=True)
class Transposed:
  """[outputs, inputs], as torch's Linear is; several of ours one below the other, as GLM's gate and up."""

  def read(self, tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    widths = [shape[-1] for shape in shapes]
    return [part.T for part in np.split(_same(tensor, (sum(widths), *shapes[0][:-1])), np.cumsum(widths)[:-1])]

  def write(self, parts: Sequence[Tensor]) -> Tensor:
    return np.concatenate([part.T for part in parts])


@dataclasses.dataclass(frozen=True)
class Joined:
  """Several of ours side by side in the last axis: queries, keys and values of GPT-1 and GPT-2."""

  leading: int = 0
  """Axes of length 1 in front: kernels of OpenAI's release are of convolutions of width 1."""

  def read(self, tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    widths = [shape[-1] for shape in shapes]
    joined = (*shapes[0][:-1], sum(widths))
    tensor = _same(tensor, (1,) * self.leading + joined).reshape(joined)
    return np.split(tensor, np.cumsum(widths)[:-1], axis=-1)

  def write(self, parts: Sequence[Tensor]) -> Tensor:
    joined = np.concatenate(parts, axis=-1)
    return joined.reshape((1,) * self.leading + joined.shape)


@dataclasses.dataclass(frozen=True)
class Grouped:
  """Queries, keys and values by group in the first axis: the queries that share a key, the key, the value (Falcon)."""

  num_kv_heads: int
  head_width: int

  def read(self, tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    inputs = shapes[0][:-1]  # of a bias: none
    tensor = _same(tensor, (sum(shape[-1] for shape in shapes), *inputs))
    groups = tensor.reshape(self.num_kv_heads, -1, self.head_width, *inputs)
    parts = (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])
    return [part.reshape(-1, *inputs).T for part in parts]

  def write(self, parts: Sequence[Tensor]) -> Tensor:
    inputs = parts[0].shape[:-1]
    groups = [part.T.reshape(self.num_kv_heads, -1, self.head_width, *inputs) for part in parts]
    return np.concatenate(groups, axis=1).reshape(-1, *inputs)


@dataclasses.dataclass(frozen=True)
class Interleaved:
  """As `form`, but the dimensions that rotary position embedding turns together are neighbours in a head (GLM).

  Ours are half the turned width apart (see `Rotary`). Of several parts the first two are queries and keys: values,
  the third, are not turned.
  """

  form: Form
  head_width: int
  turned: int
  """Dimensions at the beginning of a head: two for each pair."""

  def read(self, tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    return self._reordered(self.form.read(tensor, shapes), self._order())

  def write(self, parts: Sequence[Tensor]) -> Tensor:
    return self.form.write(self._reordered(parts, np.argsort(self._order())))

  def _order(self) -> Int[np.ndarray, '_']:
    """Where in a head of theirs each dimension of ours stands."""
    order = np.arange(self.head_width)
    order[: self.turned] = order[: self.turned].reshape(-1, 2).T.ravel()
    return order

  def _reordered(self, parts: Sequence[Tensor], order: Int[np.ndarray, '_']) -> list[Tensor]:
    heads = [part.reshape(*part.shape[:-1], -1, self.head_width)[..., order].reshape(part.shape) for part in parts[:2]]
    return [*heads, *parts[2:]]
