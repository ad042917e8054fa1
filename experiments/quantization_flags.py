"""Flag of all experiments that load or write weights: in how many bits those of the linear layers are."""

from typing import Any

from absl import flags

from gpt_jax.models.parts import part

QUANTIZATION = flags.DEFINE_string(
  'quantization', None, 'of the weights of linear layers: int8, int4, int8(group=64), ...; not given: as they come'
)


def given() -> dict[str, Any]:
  """The field of TransformerConfig that the flag says, if it is given.

  Raises:
    UserError: there is no such quantisation.
  """
  text = QUANTIZATION.value
  return {} if text is None else {'quantization': part('quantization', text, '--quantization')}
