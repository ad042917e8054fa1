"""Whether a run fits a cluster, and how fast it should be: known before there is one.

python -m experiments.plan --config=configs/pretrain/llama2_70b.py --topology=v5p:8x8x8 [--config.FIELD=VALUE ...]

For TPUs the training step itself is compiled, ahead of time, by TPUs' own compiler, which needs none of them (make
.venv/tpu installs it); for GPUs, and where it is missing, formulas estimate. No data is read.
"""

from collections.abc import Mapping
import csv
import dataclasses
import pathlib
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import config_flags

from experiments import blanks, command, runs
from experiments.plan_page import page, roofline, row, search_table
from gpt_jax.models.parts import from_config
from gpt_jax.models.transformer import REMAT, TransformerConfig
from gpt_jax.planning.compiled import compiled
from gpt_jax.planning.estimate import abstract_mesh, estimate
from gpt_jax.planning.roofline import Figures
from gpt_jax.planning.topologies import Topology, topology
from gpt_jax.sharding import AXES, Placement, make_mesh, mesh_shape
from gpt_jax.training.program import Program, named, program
from gpt_jax.training.schedules import BatchRamp
from gpt_jax.types import Batch, Layout, UserError, shapes_at

CONFIG = config_flags.DEFINE_config_file('config', None, 'a file of configs/pretrain')
TOPOLOGY = flags.DEFINE_string('topology', None, 'a slice of TPUs, such as v5p:8x8x8, or nodes of GPUs: h100:16x8')
SEARCH = flags.DEFINE_bool('search', False, 'try other meshes and rematerialisation, by formulas; compile the best')
ESTIMATE = flags.DEFINE_bool('estimate', False, 'estimate by formulas, do not compile')
TABLE = flags.DEFINE_string('table', '', 'a file (.csv) to which the figures are added, as a row')


@dataclasses.dataclass(frozen=True)
class Case:
  """A run on a cluster."""

  config: Mapping[str, Any]
  model: TransformerConfig
  cluster: Topology

  @property
  def mesh(self) -> dict[str, int]:
    """The sizes of all axes."""
    return dict(zip(AXES, mesh_shape(self.config['mesh'], self.cluster.devices_count), strict=True))

  @property
  def kernels(self) -> dict[Any, str]:
    """What computes each attention pattern there."""
    model, config = self.model, self.config
    query, key = (
      jax.ShapeDtypeStruct((config['batch_size'], config['context'], heads, model.head_width), model.dtype)
      for heads in (model.num_heads, model.num_kv_heads)
    )
    drop = (lambda weights: weights) if model.attention_dropout else None
    jobs = {pattern: pattern.job(query, key, model.score_bias, drop) for pattern in model.attention}
    device = 'tpu' if self.cluster.is_tpu else 'gpu'
    return {pattern: job.choose(model.attention_kernel, device)[0] for pattern, job in jobs.items()}

  def changed(self, mesh: Mapping[str, int], remat: str | None) -> 'Case':
    """The same on another mesh, with another policy of what the backward pass keeps."""
    model = dataclasses.replace(self.model, remat=remat)
    return dataclasses.replace(self, model=model, config={**self.config, 'mesh': {**self.mesh, **mesh}})


def case(config: Mapping[str, Any], cluster: Topology) -> Case:
  """The run of a config; its vocabulary is the family's, where the config does not say it: no tokenizer is read.

  Raises:
    UserError: a field is wrong, or the batch does not divide over the mesh.
  """
  model = from_config(config['model'])
  runs.check_context(model, config['context'])
  of = Case(config, model, cluster)
  spread, cuts = of.mesh['data'] * of.mesh['fsdp'], config['microbatches']
  ramp = BatchRamp(config['batch_size'], config['context'], **config['batch_ramp'])
  for field, rows in (('batch_size', config['batch_size']), ('batch_ramp.first_rows', ramp.rows(0))):
    if rows % (spread * cuts):
      raise UserError(
        f'config.{field} = {rows} in {cuts} microbatches does not divide over data x fsdp = {spread} devices of '
        f'{cluster.name}: it needs a multiple of {spread * cuts}'
      )
  return of


def batch_shapes(of: Case, placement: Placement) -> Batch:
  """What a step of training is given, by shapes: as the data's rows are."""
  config = of.config
  shape = (config['batch_size'], config['context'] + 1)
  sharding = NamedSharding(placement.mesh, P(('data', 'fsdp')))
  made: Any = lambda dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
  batch: dict[str, Any] = {'tokens': made(jnp.int32), 'weights': made(jnp.float32)}
  if blanks.fills_blanks(config):
    batch['labels'] = made(jnp.int32)
  if blanks.fills_blanks(config) or config['data']['separate_documents']:
    whole = made(jnp.int32)
    batch['layout'] = Layout(order=whole, position=whole, block=whole, segment=whole, prefix=made(jnp.bool_))
  return batch


def guess(of: Case, shapes: Any) -> Figures:
  """The figures of one device by formulas; `shapes` are of the state, on any mesh."""
  config = of.config
  nowhere: Any = abstract_mesh(of.mesh, of.cluster)
  return estimate(
    of.model,
    shapes_at(shapes, Placement(nowhere).state(shapes)),
    nowhere,
    of.cluster,
    of.kernels,
    rows=config['batch_size'],
    length=config['context'],
    microbatches=config['microbatches'],
    chunk=config['loss']['chunk'] or None,
  )


def made_on(of: Case, mesh: Any) -> tuple[Placement, Program]:
  """The training step of a run, by the very function that makes a run's own."""
  placement = Placement(mesh)
  return placement, program(of.config, *runs.objective(of.config, of.model), placement)


def figures(of: Case, devices: list[Any] | None) -> Figures:
  """The figures of one device, by the compiler if there are devices to compile for, else by formulas."""
  _, made = made_on(of, abstract_mesh(of.mesh, of.cluster))
  by_formulas = guess(of, made.state)
  if devices is None:
    return by_formulas
  placement, made = made_on(of, make_mesh(of.mesh, devices))
  laid = list(placement.mesh.devices.flat)
  with named(placement.mesh):
    return compiled(made.step, made.state, batch_shapes(of, placement), laid, of.cluster, by_formulas)


def search(of: Case) -> list[tuple[Case, Figures]]:
  """Other meshes and policies, by formulas: those that fit first, the fastest of them first."""
  count, rows = of.cluster.devices_count, of.config['batch_size'] // of.config['microbatches']
  shapes = made_on(of, abstract_mesh({'data': -1}, of.cluster))[1].state
  found = []
  for tensor in (1, 2, 4, 8):
    for data in (1, 2, 4, 8, 16):
      if count % (tensor * data) or rows % (count // tensor) or of.model.num_kv_heads % tensor:
        continue
      mesh = {'data': data, 'fsdp': count // (tensor * data), 'tensor': tensor, 'sequence': 1}
      for remat in (None, *REMAT):
        other = of.changed(mesh, remat)
        found.append((other, guess(other, shapes)))
  return sorted(found, key=lambda one: (not one[1].fits, roofline(*one).in_turn))


def add_row(path: str, facts: Mapping[str, Any]) -> None:
  """Adds a row to a table, which is begun if there is none.

  Raises:
    UserError: there is another table.
  """
  begun = pathlib.Path(path).exists()
  if begun and pathlib.Path(path).read_text().partition('\n')[0] != ','.join(facts):
    raise UserError(f'--table={path} is a table of other columns: name a file that is not there yet')
  with open(path, 'a', newline='') as file:
    writer = csv.DictWriter(file, facts, lineterminator='\n')
    if not begun:
      writer.writeheader()
    writer.writerow(facts)


def main(_: Any) -> None:
  config = command.required(CONFIG).to_dict()
  of = case(config, topology(command.required(TOPOLOGY)))
  devices = None if ESTIMATE.value else of.cluster.devices()
  if devices is None and of.cluster.is_tpu and not ESTIMATE.value:
    print('libtpu is not installed: figures are estimates by formulas (make .venv/tpu installs it).')
  if SEARCH.value:
    tried = search(of)
    print(search_table(tried))
    if not tried or not tried[0][1].fits:
      raise UserError(f'nothing that was tried fits {of.cluster.name}: take more chips, or more microbatches')
    of = tried[0][0]
  found = figures(of, devices)
  print(page(of, found))
  if TABLE.value:
    add_row(TABLE.value, row(of, found))


if __name__ == '__main__':
  command.run(main)
