"""Kernels that compute attention under a mask, and which of them is taken."""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import jax
from jaxtyping import Array, Bool, Float
import numpy as np

from gpt_jax.models.masks import Mask, SameSegment
from gpt_jax.models.softmax import flat, grouped
from gpt_jax.models.spread import each_its_own
from gpt_jax.types import Layout

# ---- by a device's own kernel --------------------------------------------------------------------------------------

Fused = Callable[..., Float[Array, 'B T N H']]
"""Of queries, keys, values, their layout and a mask what queries find; the softmax's sums have no gradient here."""


def cudnn(
  query: Float[Array, 'B T N H'],
  key: Float[Array, 'B T K H'],
  value: Float[Array, 'B T K H'],
  layout: Layout,
  mask: Mask,
  implementation: str = 'cudnn',
) -> Float[Array, 'B T N H']:
  """cuDNN's flash attention; the mask is an array, one for all heads. `xla` is what it is tested against."""
  visible, call = (mask & SameSegment())(layout, layout)[:, None], jax.nn.dot_product_attention
  return call(query, key, value, mask=visible, implementation=implementation)  # type: ignore[call-overload]


def splash(
  query: Float[Array, 'B T N H'],
  key: Float[Array, 'B T K H'],
  value: Float[Array, 'B T K H'],
  layout: Layout,
  mask: Mask,
) -> Float[Array, 'B T N H']:
  """Pallas splash attention: of the mask, which asks about order alone, blocks that nobody sees are left out.

  Rows are of 128 tokens or a multiple. Elsewhere than on a TPU, it is interpreted.
  """
  group, length = query.shape[2] // key.shape[2], query.shape[1]
  compiled, interpreted = _splash(mask, group, length)

  def attend(query: Any, key: Any, value: Any, layout: Layout, _: Layout) -> Float[Array, 'B T N H']:
    given = (*grouped(query, key, value), layout.segment)
    return flat(jax.lax.platform_dependent(*given, tpu=compiled, default=interpreted))

  return each_its_own(attend, query, key, value, layout, layout)


def _splash(mask: Mask, group: int, length: int) -> list[Callable[..., Float[Array, 'B K G T H']]]:
  """The kernel, compiled and interpreted, for `group` query heads that share one of keys, on all rows and key heads."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as table

  class Predicate(table.Mask):
    """The mask, asked about a part of a row at a time."""

    shape = (length, length)  # type: ignore[assignment]

    def __getitem__(self, part: Any) -> np.ndarray:
      return seen_by_order(mask, *(np.arange(length)[at] for length, at in zip(self.shape, part, strict=True)))

  size = math.gcd(length, 512)
  blocks = kernel.BlockSizes(
    block_q=size, block_kv=size, block_q_dkv=size, block_kv_dkv=size, block_q_dq=size, block_kv_dq=size
  )
  heads = table.MultiHeadMask([Predicate()] * group)

  def made(interpret: bool) -> Callable[..., Float[Array, 'B K G T H']]:
    attend = kernel.make_splash_mqa_single_device(heads, block_sizes=blocks, interpret=interpret)
    in_segments = lambda ids: functools.partial(attend, segment_ids=kernel.SegmentIds(ids, ids))
    return jax.vmap(lambda query, key, value, ids: jax.vmap(in_segments(ids))(query, key, value))

  return [made(False), made(True)]


def seen_by_order(mask: Mask, queries: np.ndarray, keys: np.ndarray) -> Bool[np.ndarray, 'T S']:
  """What a mask that asks about order alone lets queries see, both by their places in the row."""

  def layout(order: np.ndarray) -> Layout:
    places = order[None]
    return Layout(places, places, 0 * places, 0 * places + 1, places < 0)

  return np.asarray(mask(layout(queries), layout(keys))[0])


FUSED: dict[str, Fused] = {'cudnn': cudnn, 'splash': splash}

# ---- which of them -------------------------------------------------------------------------------------------------

KERNELS = ('auto', 'plain', 'chunked', *FUSED)

LONG = {'cpu': 512}
"""Tokens of a row from which chunks are faster than all scores at once, where they ever are."""

MOST_PLAIN = {'cpu': 1 << 24}
"""Scores, of all rows and heads, that are too many to exist at once."""


def compiled_for() -> str:
  """The platform of the mesh that is set (`jax.set_mesh`), which need not be this machine's; else the default one."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


@dataclasses.dataclass(frozen=True)
class Job:
  """What is asked of a kernel."""

  rows: int
  queries: int
  keys: int
  heads: int
  width: int
  dtype: str
  mask: Mask | None
  """All that a query may see, segments apart; None: it is not one mask, as parts are joined or kinds take turns."""
  biased: bool = False
  dropped: bool = False
  compared: int | None = None
  """Keys that each query is compared with where all scores exist at once; None: all."""

  def part(self, compared: int | None = None) -> 'Job':
    """The same as a part of a whole, whose sums are asked for."""
    return dataclasses.replace(self, mask=None, compared=compared)

  def unfit(self, kernel: str) -> str | None:
    """Why a kernel cannot do it."""
    if kernel == 'plain':
      return None
    if self.dropped:
      return 'attention weights are dropped'
    if kernel == 'chunked':
      return None
    if self.mask is None:
      return 'parts are joined by sums that have no gradient in it'
    if self.queries != self.keys:
      return 'queries read a cache'
    if self.biased:
      return 'scores have a bias'
    if kernel == 'cudnn':
      if self.dtype not in {'bfloat16', 'float16'}:
        return f'it has no {self.dtype}'
      return f'heads of {self.width} are no multiple of 8' if self.width % 8 else None
    if not self.mask.of_order:
      return 'the mask asks about more than order'
    return f'{self.queries} is no multiple of 128' if self.queries % 128 else None

  def choose(self, kernel: str = 'auto', device: str | None = None) -> tuple[str, str]:
    """A kernel's name and why it is taken; one that is asked for gives way only where it cannot do it."""
    device = compiled_for() if device is None else device
    if kernel != 'auto':
      why = self.unfit(kernel)
      if why is None:
        return kernel, 'as asked'
      name, reason = self.choose(device=device)
      return name, f'{reason}; not {kernel}, as {why}'
    fused = {'gpu': 'cudnn', 'tpu': 'splash'}.get(device)
    given_up = fused and self.unfit(fused)
    if fused and given_up is None:
      return fused, f'the kernel of a {device}'
    but = f'; not {fused}, as {given_up}' if fused else ''
    long = self.queries >= LONG.get(device, math.inf)
    many = self.rows * self.heads * self.queries * (self.compared or self.keys) >= MOST_PLAIN.get(device, 1 << 28)
    if (long or many) and self.unfit('chunked') is None:
      return 'chunked', ('rows are long' if long else 'scores are many') + but
    return 'plain', ('scores are few' if not (long or many) else str(self.unfit('chunked'))) + but
