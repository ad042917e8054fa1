"""How fast a step can be at best: what it computes, reads and sends, over what chips can."""

from collections.abc import Iterable, Mapping
import dataclasses


@dataclasses.dataclass(frozen=True)
class Exchange:
  """What all collectives of one kind between so many devices do in a step; of one device."""

  kind: str
  devices: int
  count: int
  moved: float
  """Bytes that it sends."""
  seconds: float


@dataclasses.dataclass(frozen=True)
class Figures:
  """What a step needs of one device."""

  how: str
  """Where they are from: a compiled program, or formulas."""
  state: float
  """Bytes of parameters and what the optimiser keeps."""
  parameters: float
  """Bytes of the parameters alone; their gradients are as many."""
  peak: float
  """Bytes of memory when there are most."""
  capacity: float
  """Bytes of memory that there are."""
  products: float
  """FLOPs of products of matrices, with all that is done twice."""
  kernels: float
  """FLOPs of attention's own kernels."""
  read: float
  """Bytes that go through memory, at least."""
  exchanges: tuple[Exchange, ...]
  compile_seconds: float = 0.0
  refusal: str = ''
  """The compiler's, of a program that does not fit."""

  @property
  def flops(self) -> float:
    return self.products + self.kernels

  @property
  def fits(self) -> bool:
    return not self.refusal and self.peak <= self.capacity

  def times(self, flops: float, bandwidth: float) -> dict[str, float]:
    """Seconds of computing, of memory and of exchange, each at a device's peak rates a second."""
    exchange = sum(one.seconds for one in self.exchanges)
    return {'compute': self.flops / flops, 'memory': self.read / bandwidth, 'interconnect': exchange}


@dataclasses.dataclass(frozen=True)
class Roofline:
  """A step's time between two bounds."""

  times: Mapping[str, float]

  @property
  def bound(self) -> str:
    """What takes longest."""
    return max(self.times, key=lambda name: self.times[name])

  @property
  def overlapped(self) -> float:
    """Seconds, if all goes on at once: the roofline."""
    return max(self.times.values())

  @property
  def in_turn(self) -> float:
    """Seconds, if devices compute, wait for memory where that is slower, and then exchange."""
    return max(self.times['compute'], self.times['memory']) + self.times['interconnect']


def merged(exchanges: Iterable[Exchange]) -> tuple[Exchange, ...]:
  """Those of one kind between as many devices as one, the longest first."""
  found: dict[tuple[str, int], Exchange] = {}
  for one in exchanges:
    before = found.get((one.kind, one.devices), Exchange(one.kind, one.devices, 0, 0.0, 0.0))
    found[one.kind, one.devices] = dataclasses.replace(
      before,
      count=before.count + one.count,
      moved=before.moved + one.moved,
      seconds=before.seconds + one.seconds,
    )
  return tuple(sorted(found.values(), key=lambda one: -one.seconds))
