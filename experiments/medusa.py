"""Trains Medusa's heads for a language model, and grows the tree of guesses that suits them.

The model stays as it is (Medusa-1) or, with config.joint.weight, learns along with its heads by LoRA (Medusa-2): then
the run's folder is the model's too, what --model takes.

python -m experiments.medusa --config=configs/medusa/smollm2.py --workdir=DIR [--config.FIELD=VALUE ...]
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import pathlib
from typing import Any

from absl import flags
import jax
from jaxtyping import Int
from ml_collections import config_flags
import numpy as np
from tabulate import tabulate

from experiments import command, generations, language, reading, runs
from experiments.heads import TREE_FILE, heads_config, medusa_of, read_tree
from gpt_jax.decoding.tree import TOPK, grow_tree
from gpt_jax.evaluation.perplexity import evaluate, once
from gpt_jax.models.flops import medusa_flops
from gpt_jax.models.heads import LanguageModel, Medusa, medusa_params, unembedding_table
from gpt_jax.models.lora import Lora, adapted
from gpt_jax.models.parts import part, to_config
from gpt_jax.models.transformer import TransformerConfig
from gpt_jax.objectives.likelihood import next_token
from gpt_jax.objectives.medusa import joint_loss, medusa_loss, together
from gpt_jax.sharding import Placement, make_mesh
from gpt_jax.training.checkpoints import restore_params
from gpt_jax.training.optimizers import make_optimizer
from gpt_jax.training.run import run
from gpt_jax.training.workdir import prepare, write_json
from gpt_jax.types import Batch, LossFn, Params, UserError

CONFIG = config_flags.DEFINE_config_file('config', None, 'a file of configs/medusa')
WORKDIR = flags.DEFINE_string('workdir', None, 'the folder of the run: what it writes, and where it goes on from')

VICUNA_7B = {1: (0.560, 0.316, 0.201, 0.147, 0.118), 5: (0.780, 0.563, 0.417, 0.340, 0.300)}
"""Top-1 and top-5 accuracy of the heads released for Vicuna-7B, from medusa_acc.csv of the paper's repository."""


def train(config: Mapping[str, Any], workdir: str) -> None:
  """Trains as `config` says, in `workdir`, from where an earlier run of the same config stopped."""
  changed, lora = _parts(config)
  joint = config['joint']
  frozen = [('unembed_table$', 0.0)] if config['shared'] else []
  slower = [('heads/', 1.0), ('lora_[ab]$', joint['rate']), ('', 0.0)] if joint['weight'] else []
  rates = (*frozen, *config['optimizer']['rates'], *slower)
  config = {**config, 'optimizer': {**config['optimizer'], 'rates': rates}}
  prepare(workdir, config)
  placement = Placement(make_mesh(config['mesh']))
  base = language.load(config['base'], placement.params, stacked=False, **changed)
  runs.keep_tokenizer(workdir, base.tokenizer)
  medusa = medusa_of(config, base.model.config)
  data = generations.data(config, workdir, base, config['base'])
  runs.check_context(base.model.config, data.context)
  vocabulary = _vocabulary(config, data, base.model.config.vocab_size)
  loss = {'decay': config['loss']['decay'], 'chunk': config['loss']['chunk'] or None, 'vocabulary': vocabulary}
  if joint['weight']:
    adapting = dataclasses.replace(base.model.config, lora=lora)
    write_json(pathlib.Path(workdir) / language.MODEL_FILE, to_config(adapting))
    learning = _together(base, adapting, medusa, placement, loss, joint['weight'])
  else:
    learning = _heads_alone(base, medusa, placement, loss, config['init_from'])
  batches = data.batches(config, placement.share)

  @once
  def measure(params: Params) -> dict[str, float]:
    held_out = reading.placed(data.validation, config['eval_batch_size'], placement)
    return evaluate(learning.measured, params, map(learning.batch, held_out))

  def validation(params: Params) -> dict[str, float]:
    return {name: value for name, value in measure(params).items() if name.endswith(('loss', 'nll', 'top_1'))}

  def summary(params: Params) -> dict[str, Any]:
    found = measure(params)
    table = [[found[f'head_{k + 1}_top_{i + 1}'] for i in range(TOPK)] for k in range(config['num_heads'])]
    choices = np.diff(np.array(table), prepend=0.0, axis=1)
    tree = grow_tree(choices, config['tree']['num_nodes'])
    expected = float(tree.values(choices).sum())
    known = {} if vocabulary is None else {'vocabulary': vocabulary.tolist()}
    write_json(pathlib.Path(workdir) / TREE_FILE, {**tree.to_json(), **known})
    print(accuracies(table))
    print(f'A tree of {len(tree)} nodes, {tree.max_depth} deep: {expected:.2f} tokens a step expected')
    return {'accuracies': table, 'expected_tokens': expected}

  state = run(
    workdir,
    config,
    init=learning.init,
    first=learning.first,
    loss_fn=learning.loss,
    source=lambda index, state: [learning.batch(batches(index))],
    placement=placement,
    tokens_per_step=lambda index: config['batch_size'] * data.context,
    flops_per_token=medusa_flops(medusa, data.context, joint=bool(joint['weight'])),
    evaluations={'validation': validation},
    summary=summary,
    describe_batch=lambda index: f'batch {index} of seed {config["seed"]}',
    **command.training(),
  )
  if state is not None:
    print(f'Done: {workdir} has result.json and {TREE_FILE}.')


def _parts(config: Mapping[str, Any]) -> tuple[dict[str, Any], Lora]:
  """Fields of the model's config that the run's config says, and what learns beside them in joint training.

  Raises:
    UserError: the run's config can be no run's, of which the line names the field.
  """
  if not config['base']:
    raise UserError(f'config.base is missing: name {language.MODEL}')
  reading.sources_of(config['data'])
  if config['tree']['num_nodes'] < 1:
    raise UserError(f'config.tree.num_nodes = {config["tree"]["num_nodes"]} must be at least 1, the root')
  make_optimizer(config['optimizer'], config['num_steps'])
  weight = config['joint']['weight']
  if weight < 0:
    raise UserError(f'config.joint.weight = {weight} must not be negative')
  changed = {'dtype': config['dtype']}
  if config['quantization']:
    changed['quantization'] = part('quantization', config['quantization'], 'config.quantization')
    if weight:
      raise UserError('config.quantization is of a model that stays as it is: leave it out, or config.joint.weight')
  if config['init_from']:
    theirs = heads_config(config['init_from'])
    if weight or theirs['joint']['weight']:
      raise UserError('config.init_from: heads go on from heads alone, without config.joint.weight in either run')
    for field in ('base', 'num_heads', 'shared', 'draft_vocab_size'):
      if config[field] != theirs[field]:
        raise UserError(f'config.{field} = {config[field]!r} is not the {theirs[field]!r} of config.init_from')
  return changed, part('lora', config['joint']['lora'], 'config.joint.lora')


def _vocabulary(config: Mapping[str, Any], data: generations.Data, vocab_size: int) -> Int[np.ndarray, 'G'] | None:
  """The tokens that heads tell apart: those of the heads that these begin as, or the most frequent; None: all."""
  if not config['draft_vocab_size']:
    return None
  if config['init_from']:
    return read_tree(config['init_from'])[1]
  return data.frequent_tokens(config['draft_vocab_size'], vocab_size)


@dataclasses.dataclass(frozen=True)
class Learning:
  """What learns, and how: the arguments of a run."""

  init: Callable[[jax.Array], Params]
  first: Callable[[Params], Params]
  loss: LossFn
  measured: LossFn
  """On held-out text."""
  batch: Callable[[Batch], Batch]


def _heads_alone(
  base: language.Trained, medusa: Medusa, placement: Placement, loss: Mapping[str, Any], init_from: str
) -> Learning:
  """Medusa-1: hidden states of the frozen model come with the batch."""

  @jax.jit
  def hidden_states(params: Params, batch: Batch) -> jax.Array:
    inputs, layout, _, _ = next_token(batch)
    found: Any = base.model.apply(params, inputs, layout, method='features')
    return found[0]

  def with_hidden(batch: Batch) -> Batch:
    batch = placement.batch(batch)
    return {**batch, 'hidden': hidden_states(base.params, batch)}

  def first(like: Params) -> Params:
    if init_from:
      return restore_params(init_from, like)
    table = unembedding_table(base.model.config, base.params)
    begin = functools.partial(medusa_params, medusa, vocabulary=loss['vocabulary'])
    return jax.jit(begin, out_shardings=_shardings(like))(table)

  return Learning(
    functools.partial(_heads, medusa), first, medusa_loss(medusa, **loss), medusa_loss(medusa, **loss, top=TOPK),
    with_hidden,
  )  # fmt: skip


def _together(
  base: language.Trained,
  config: TransformerConfig,
  medusa: Medusa,
  placement: Placement,
  loss: Mapping[str, Any],
  weight: float,
) -> Learning:
  """Medusa-2: one tree of parameters, in which the model's own are frozen but for LoRA's."""
  model, evaluated = LanguageModel(config), LanguageModel(config.evaluated())
  own = functools.partial(model.init, tokens=jax.numpy.zeros((1, 1), int))

  def first(like: Params) -> Params:
    def begun(params: Params) -> Params:
      heads = medusa_params(medusa, unembedding_table(config, params), loss['vocabulary'])
      return together(adapted(params, own(jax.random.key(0))), heads)

    return jax.jit(begun, out_shardings=_shardings(like))(base.params)

  both = functools.partial(joint_loss, weight=weight, chunk=loss['chunk'])
  return Learning(
    lambda key: together(own(key), _heads(medusa, key)), first, both(model, medusa_loss(medusa, **loss)),
    both(evaluated, medusa_loss(medusa, **loss, top=TOPK)), placement.batch,
  )  # fmt: skip


def _heads(medusa: Medusa, key: jax.Array) -> Params:
  return medusa.init(key, jax.numpy.zeros((1, medusa.config.model_dim)))


def _shardings(like: Params) -> Any:
  return jax.tree.map(lambda leaf: leaf.sharding, like)


def accuracies(table: list[list[float]]) -> str:
  """How often each head is right with one to five guesses, beside what was published of a larger model."""
  shown = [
    [f'head {k + 1}', *row[:5], *(VICUNA_7B[i][k] if k < len(VICUNA_7B[i]) else None for i in VICUNA_7B)]
    for k, row in enumerate(table)
  ]
  names = ['held out', *(f'top-{i + 1}' for i in range(5)), *(f'Vicuna-7B top-{i}' for i in VICUNA_7B)]
  return tabulate(shown, names, floatfmt='.3f', missingval='')


def main(_: Any) -> None:
  train(command.required(CONFIG).to_dict(), command.required(WORKDIR))


if __name__ == '__main__':
  command.run(main)
