"""What a training step needs on TPUs, by XLA's own figures, for each way to compute attention; no TPU is needed.

  make bench-tpu

Compiles ahead of time GPT-3 125M's step (forward, backward, AdamW; bfloat16, parameters in float32 over `fsdp`) for the
four chips of a v5e:2x2, with its alternation of dense and banded layers and with dense ones alone, at rows of 8,192
tokens, one a chip. `does not fit` is XLA's own refusal. It shows memory and that kernels compile, not numbers or speed.
"""

import dataclasses
import json
import os
import pathlib
import re
import sys
import time

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from configs.pretrain import base
from gpt_jax.models.attention import Banded, Dense
from gpt_jax.models.families import FAMILIES
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.positions import Learned
from gpt_jax.objectives.likelihood import next_token_loss
from gpt_jax.sharding import Placement, make_mesh
from gpt_jax.training.loop import init_state, make_step
from gpt_jax.training.optimizers import make_optimizer

TOPOLOGY, CHIPS, FAMILY, LENGTH = 'v5e:2x2', 4, 'gpt3_125m', 8192
QUIET = {'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_WORKER_ID': '0'}
QUIET |= {'TPU_STDERR_LOG_LEVEL': '3', 'TPU_MIN_LOG_LEVEL': '3', 'TF_CPP_MIN_LOG_LEVEL': '3'}
PATTERNS = {'dense, banded(256)': (Dense(), Banded(256)), 'dense': (Dense(),)}


def compiled(attention, kernel):
  """The step of a model with these patterns."""
  config = dataclasses.replace(
    FAMILIES[FAMILY], attention=attention, attention_kernel=kernel, dtype='bfloat16', positions=Learned(LENGTH)
  )
  model = LanguageModel(config)
  devices = list(topologies.get_topology_desc(platform='tpu', topology_name=TOPOLOGY).devices)
  placement = Placement(make_mesh({'fsdp': CHIPS}, devices))
  optimizer = make_optimizer(base.get_config().optimizer.to_dict(), 100)
  born = lambda key: init_state(model.init(key, jnp.zeros((1, 1), int)), optimizer)
  shapes = jax.eval_shape(born, jax.random.key(0))
  shardings = placement.state(shapes)
  like = lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
  rows = NamedSharding(placement.mesh, P(('data', 'fsdp')))
  batch = {name: jax.ShapeDtypeStruct((CHIPS, LENGTH + 1), jnp.int32, sharding=rows) for name in ('tokens', 'weights')}
  loss = next_token_loss(model, chunk=512)
  step = make_step(loss, optimizer, seed=0, shardings=shardings)
  with jax.set_mesh(placement.mesh):
    return step.func.lower(jax.tree.map(like, shapes, shardings), batch, **step.keywords).compile()


def main():
  os.environ.update(QUIET)
  jax.config.update('jax_platforms', 'cpu')
  found = []
  for name, attention in PATTERNS.items():
    for kernel in ('plain', 'chunked', 'splash'):
      start = time.perf_counter()
      figures = {'attention': name, 'kernel': kernel}
      try:
        program = compiled(attention, kernel)
        memory = program.memory_analysis()
        figures['peak_gib'] = round(memory.peak_memory_in_bytes / 2**30, 2)
        figures['temporary_gib'] = round(memory.temp_size_in_bytes / 2**30, 2)
        figures['kernels'] = program.as_text().count('tpu_custom_call')
      except jax.errors.JaxRuntimeError as error:
        used = re.search(r'([\d.]+G)\b.*?([\d.]+G)\b', str(error).partition('RESOURCE_EXHAUSTED')[2])
        if used is None:
          raise
        figures['does_not_fit'] = f'{used[1]} of {used[2]}'
      print({**figures, 'compile_seconds': round(time.perf_counter() - start, 1)}, flush=True)
      found.append(figures)
  print(json.dumps({'model': FAMILY, 'topology': TOPOLOGY, 'tokens_a_row': LENGTH, 'rows_a_chip': 1, 'steps': found}))


if __name__ == '__main__':
  main()
