"""Trains a small model to say what a large one says: a draft for speculative decoding, or a model to use itself.

python -m experiments.distill --config=configs/distill/smollm2_draft.py --workdir=DIR [--config.FIELD=VALUE ...]
"""

from collections.abc import Callable, Mapping
import math
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
from ml_collections import config_flags

from experiments import command, generations, language, reading, runs
from gpt_jax.evaluation.perplexity import evaluate
from gpt_jax.models.flops import training_flops
from gpt_jax.models.heads import LanguageModel
from gpt_jax.names import choose
from gpt_jax.objectives.distillation import Direction, distillation_loss, teacher_top
from gpt_jax.objectives.likelihood import map_over_chunks, next_token, next_token_loss
from gpt_jax.sharding import Placement, make_mesh
from gpt_jax.training.optimizers import make_optimizer
from gpt_jax.training.run import run
from gpt_jax.training.workdir import prepare
from gpt_jax.types import Batch, Params, UserError

CONFIG = config_flags.DEFINE_config_file('config', None, 'a file of configs/distill')
WORKDIR = flags.DEFINE_string('workdir', None, 'the folder of the run: what it writes, and where it goes on from')

KINDS: Mapping[str, Direction | None] = {'forward_kl': 'forward', 'reverse_kl': 'reverse', 'sequence': None}
"""Of losses, by name: the direction of the divergence from the teacher, or none (Kim and Rush 2016: its text alone)."""


def distill(config: Mapping[str, Any], workdir: str) -> None:
  """Trains as `config` says, in `workdir`, from where an earlier run of the same config stopped."""
  direction, loss = checked(config)
  placement = Placement(make_mesh(config['mesh']))
  teacher = language.load(config['teacher'], placement.params, dtype=config['teacher_dtype'], stacked=False)
  # The teacher's vocabulary may be larger than its tokenizer's.
  size = config['model']['vocab_size'] or teacher.model.config.vocab_size
  config = {**config, 'model': {**config['model'], 'vocab_size': size}}
  if size != teacher.model.config.vocab_size:
    raise UserError(f'config.model.vocab_size = {size} is not the {teacher.model.config.vocab_size} of the teacher')
  prepare(workdir, config)
  runs.keep_tokenizer(workdir, teacher.tokenizer)
  cfg = language.model_config(config, teacher.tokenizer)
  data = generations.data(config, workdir, teacher, config['teacher'])
  for each in (cfg, teacher.model.config):
    runs.check_context(each, data.context)
  model, evaluated = LanguageModel(cfg), LanguageModel(cfg.evaluated())
  batches, says = data.batches(config, placement.share), teacher_outputs(teacher.model, config['loss'])

  def with_teacher(batch: Batch) -> Batch:
    batch = placement.batch(batch)
    tokens, logprobs = says(teacher.params, batch)
    return {**batch, 'teacher_tokens': tokens, 'teacher_logprobs': logprobs}

  measured = distillation_loss(
    evaluated, direction=direction or 'forward', **{**loss, 'mix': loss['mix'] if direction else 1.0}
  )

  def validation(params: Params) -> dict[str, float]:
    held_out = reading.placed(data.validation, config['eval_batch_size'], placement)
    found = evaluate(measured, params, map(with_teacher, held_out))
    return {**found, 'perplexity': math.exp(found['nll'])}  # of the text, not of a divergence

  if direction is None:
    loss_fn = next_token_loss(model, chunk=loss['chunk'])
  else:
    loss_fn = distillation_loss(model, direction=direction, **loss)
  teaching = 0.0 if direction is None else training_flops(teacher.model.config, data.context) / 3
  state = run(
    workdir,
    config,
    init=lambda key: evaluated.init(key, jnp.zeros((1, 1), int)),
    loss_fn=loss_fn,
    source=lambda index, state: [batches(index) if direction is None else with_teacher(batches(index))],
    placement=placement,
    tokens_per_step=lambda index: config['batch_size'] * data.context,
    flops_per_token=training_flops(cfg, data.context) + teaching,
    evaluations={'validation': validation},
    describe_batch=lambda index: f'batch {index} of seed {config["seed"]}',
    **command.training(),
  )
  if state is not None:
    print(f'Done: {workdir} has result.json and plots. To see what it learned:')
    print(f'  python -m experiments.generate --model={workdir} --prompt="Once"')


def checked(config: Mapping[str, Any]) -> tuple[Direction | None, dict[str, Any]]:
  """The direction of the divergence, and the other arguments of the loss.

  Raises:
    UserError: what is wrong in the config, as far as it can be known before any data is read.
  """
  if not config['teacher']:
    raise UserError(f'config.teacher is missing: name {language.MODEL}')
  reading.sources_of(config['data'])
  make_optimizer(config['optimizer'], config['num_steps'])
  loss = config['loss']
  direction = choose('config.loss.kind', loss['kind'], KINDS)
  if direction is None and not config['generate']['rows']:
    raise UserError("config.loss.kind = 'sequence' learns from what the teacher writes: give config.generate.rows")
  if loss['top_k'] < 1 or loss['temperature'] <= 0 or not 0 <= loss['mix'] <= 1:
    raise UserError('config.loss: top_k must be at least 1, temperature above 0, and mix from 0 to 1')
  return direction, {'temperature': loss['temperature'], 'mix': loss['mix'], 'chunk': loss['chunk'] or None}


def teacher_outputs(model: LanguageModel, loss: Mapping[str, Any]) -> Callable[[Params, Batch], tuple[Any, Any]]:
  """What makes `teacher_tokens` and `teacher_logprobs` of a batch; logits exist for a chunk of places at a time."""

  @jax.jit
  def says(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    inputs, layout, _, _ = next_token(batch)
    found: Any = model.apply(params, inputs, layout, method='features')
    hidden, unembed, _ = found
    k = min(loss['top_k'], model.config.vocab_size)
    top = lambda piece: teacher_top(unembed(piece), k, loss['temperature'])
    tops: tuple[jax.Array, jax.Array] = map_over_chunks(top, loss['chunk'] or None, hidden)
    return tops

  return says


def main(_: Any) -> None:
  distill(command.required(CONFIG).to_dict(), command.required(WORKDIR))


if __name__ == '__main__':
  command.run(main)
