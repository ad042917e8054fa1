"""Flags of all experiments that use a model: which one."""

from typing import Any

from absl import flags

from experiments import command, language, quantization_flags

MODEL = flags.DEFINE_string('model', None, language.MODEL)
DTYPE = flags.DEFINE_enum('dtype', None, ['float32', 'bfloat16'], "of computation; not given: the run's, or float32")


def load(**changed: Any) -> language.Trained:
  """The model that the flags name."""
  dtype = {} if DTYPE.value is None else {'dtype': DTYPE.value}
  return language.load(command.required(MODEL), **{**dtype, **quantization_flags.given(), **changed})
