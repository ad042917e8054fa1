"""What a training step needs on TPUs, by XLA's own figures, for each way to compute attention; no TPU is needed.

  make bench-tpu

Compiles ahead of time GPT-3 125M's step (forward, backward, AdamW; bfloat16, parameters in float32 over `fsdp`) for the
four chips of a v5e:2x2, with its alternation of dense and banded layers and with dense ones alone, at rows of 8,192
tokens, one a chip. `does not fit` is XLA's own refusal. It shows memory and that kernels compile, not numbers or speed.
"""

import json
import pathlib
import sys

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from configs.pretrain import gpt3
from experiments import plan
from gpt_jax.planning.topologies import topology

TOPOLOGY, CHIPS, SIZE, LENGTH = 'v5e:2x2', 4, '125m', 8192
PATTERNS = ('dense, banded(256)', 'dense')


def config_of(attention, kernel):
  """The run of a model with these patterns."""
  config = gpt3.get_config(SIZE)
  config.batch_size, config.context, config.loss.chunk = CHIPS, LENGTH, 512
  config.batch_ramp.update({'first_rows': 0, 'ramp_tokens': 0})
  config.model.update({'attention': attention, 'attention_kernel': kernel, 'positions': f'learned({LENGTH})'})
  config.model.remat = 'none'
  config.mesh.update({'data': 1, 'fsdp': CHIPS})
  return config.to_dict()


def main():
  jax.config.update('jax_platforms', 'cpu')
  cluster = topology(TOPOLOGY)
  devices = cluster.devices()
  if devices is None:
    sys.exit('libtpu is not installed: make .venv/tpu')
  found = []
  for attention in PATTERNS:
    for kernel in ('plain', 'chunked', 'splash'):
      needed = plan.figures(plan.case(config_of(attention, kernel), cluster), devices)
      figures = {'attention': attention, 'kernel': kernel, 'peak_gib': round(needed.peak / 2**30, 2)}
      figures |= {'does_not_fit': needed.refusal} if needed.refusal else {}
      print({**figures, 'compile_seconds': round(needed.compile_seconds, 1)}, flush=True)
      found.append(figures)
  about = {'model': f'gpt3_{SIZE}', 'topology': TOPOLOGY, 'tokens_a_row': LENGTH, 'rows_a_chip': 1}
  print(json.dumps({**about, 'steps': found}))


if __name__ == '__main__':
  main()
