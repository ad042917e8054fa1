"""Flags of all experiments that use a model: which one, and where it lives."""

from typing import Any

from absl import flags

from experiments import command, language, quantization_flags
from gpt_jax.interop.tensors import Place
from gpt_jax.sharding import Placement, make_mesh
from gpt_jax.types import UserError

MODEL = flags.DEFINE_string('model', None, language.MODEL)
DTYPE = flags.DEFINE_enum('dtype', None, ['float32', 'bfloat16'], "of computation; not given: the run's, or float32")
MESH = flags.DEFINE_list(
  'mesh', [], "sizes of the mesh's axes that parameters are spread over, such as fsdp=2,tensor=4; none: one device"
)


def place() -> Place | None:
  """Gives the sharding of each parameter, of their shapes, where the flags say a mesh.

  Raises:
    UserError: there can be no such mesh on the devices at hand.
  """
  if not MESH.value:
    return None
  sizes = {}
  for text in MESH.value:
    axis, _, size = text.partition('=')
    try:
      sizes[axis.strip()] = int(size)
    except ValueError:
      raise UserError(f'--mesh={",".join(MESH.value)}: write AXIS=SIZE, as in fsdp=2,tensor=4') from None
  return Placement(make_mesh(sizes)).params


def load(**changed: Any) -> language.Trained:
  """The model that the flags name."""
  dtype = {} if DTYPE.value is None else {'dtype': DTYPE.value}
  return language.load(command.required(MODEL), place(), **{**dtype, **quantization_flags.given(), **changed})
