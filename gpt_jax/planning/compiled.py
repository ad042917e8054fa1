"""What a step needs by the compiler: the training step itself, compiled ahead of time for devices that are not here."""

from collections.abc import Sequence
import dataclasses
import re
import time
from typing import Any
import warnings

import jax

from gpt_jax.planning.programs import Program
from gpt_jax.planning.roofline import Exchange, Figures, merged
from gpt_jax.planning.topologies import Topology, coordinates
from gpt_jax.training.loop import Step


def compile_step(step: Step, state: Any, batch: Any) -> Any:
  """The compiled step, of shapes with their shardings; call it where the mesh is set, as a run does."""
  with warnings.catch_warnings():  # programs for devices that are not here are kept, but can not be read again
    warnings.filterwarnings('ignore', 'Error reading persistent compilation cache')
    return step.func.lower(state, batch, **step.keywords).compile()  # type: ignore[attr-defined]


def compiled(step: Step, state: Any, batch: Any, devices: Sequence[Any], cluster: Topology, guess: Figures) -> Figures:
  """The figures of a step by XLA.

  Memory is XLA's; products of matrices and collectives are counted in its program. FLOPs of attention's own kernels, if
  it calls any, and what goes through memory are `guess`'s; products too, if a loop of the program is open. A program
  that does not fit has XLA's word for it.

  Args:
    step: as training makes it.
    state: shapes with their shardings.
    batch: likewise.
    devices: of the mesh, in its order.
    cluster: what they are of.
    guess: by formulas.
  """
  start = time.perf_counter()
  try:
    program = compile_step(step, state, batch)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    needed, there = sizes_of(str(error))
    took = time.perf_counter() - start
    return dataclasses.replace(
      guess, how='compiled', peak=needed, capacity=there, refusal=refusal(str(error)), compile_seconds=took
    )
  took = time.perf_counter() - start
  memory, text = program.memory_analysis(), Program(program.as_text())
  at = coordinates(devices)
  exchanges = [
    Exchange(one.kind, len(one.group), one.count, one.moved, one.moved / cluster.rate(at[list(one.group)]))
    for one in text.collectives()
  ]
  return dataclasses.replace(
    guess,
    how='compiled, FLOPs by formulas' if text.open_loops else 'compiled',
    state=float(memory.argument_size_in_bytes),
    peak=float(memory.peak_memory_in_bytes),
    products=guess.products if text.open_loops else text.product_flops(),
    kernels=guess.kernels if text.kernels() else 0.0,
    exchanges=merged(exchanges),
    compile_seconds=took,
  )


def sizes_of(message: str) -> tuple[float, float]:
  """Bytes that a program needs and that there are, of XLA's message of one that does not fit; 0 where it is silent."""
  found = re.findall(r'([\d.]+)([KMGT])\b', message.partition('RESOURCE_EXHAUSTED')[2])[:2]
  powers = {'K': 10, 'M': 20, 'G': 30, 'T': 40}
  sizes = [float(number) * 2 ** powers[unit] for number, unit in found]
  return (sizes[0], sizes[1]) if len(sizes) == 2 else (0.0, 0.0)


def refusal(message: str) -> str:
  """XLA's own words, one line."""
  return message.partition('RESOURCE_EXHAUSTED: ')[2].splitlines()[0]
