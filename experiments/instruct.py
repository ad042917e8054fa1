"""Teaches a language model by demonstrations: to answer as the answers it is shown.

python -m experiments.instruct --config=configs/instruct/snippets.py --workdir=DIR [--config.FIELD=VALUE ...]
"""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
from ml_collections import config_flags

from experiments import command, language
from gpt_jax.data import mixture, tokenizers
from gpt_jax.data.answers import Answers
from gpt_jax.data.formats import Demonstration, demonstrations, teach
from gpt_jax.data.rows import Dataset, in_order
from gpt_jax.data.sources import records
from gpt_jax.evaluation.perplexity import evaluate
from gpt_jax.models.flops import training_flops
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.lora import Lora, adapted
from gpt_jax.models.parts import part, to_config
from gpt_jax.objectives.likelihood import next_token_loss
from gpt_jax.sharding import Placement, make_mesh
from gpt_jax.training.optimizers import make_optimizer
from gpt_jax.training.run import run
from gpt_jax.training.workdir import prepare, write_json
from gpt_jax.types import Params, UserError

CONFIG = config_flags.DEFINE_config_file('config', None, 'a file of configs/instruct')
WORKDIR = flags.DEFINE_string('workdir', None, 'the folder of the run: what it writes, and where it goes on from')

LORA_ALONE = (('lora_[ab]$', 1.0), ('', 0.0))
"""Rates of a model that stays as it is beside its LoRA."""


def train(config: Mapping[str, Any], workdir: str) -> None:
  """Trains as `config` says, in `workdir`, from where an earlier run of the same config stopped."""
  lora = checked(config)
  found = language.weights(config['init_from'])
  cfg = dataclasses.replace(found.changed(config['model']), lora=lora)
  language.check_context(cfg, config['context'])
  train, weights = training_rows(config, found)
  validation = answers(config, found, 'validation')
  num_steps = max(round(config['epochs'] * len(train[0]) / (config['batch_size'] * weights[0])), 1)
  config = {**config, 'num_steps': num_steps, 'begin': found.begin}
  if lora is not None:
    config['optimizer'] = {**config['optimizer'], 'rates': (*config['optimizer']['rates'], *LORA_ALONE)}
  prepare(workdir, config)
  tokenizers.save(found.tokenizer, pathlib.Path(workdir) / 'tokenizer')
  write_json(pathlib.Path(workdir) / language.MODEL_FILE, to_config(cfg))
  placement = Placement(make_mesh(config['mesh']))
  model, evaluated = LanguageModel(cfg), LanguageModel(cfg.evaluated())
  init = lambda key: evaluated.init(key, jnp.zeros((1, 1), int))
  hosts = {'host': jax.process_index(), 'hosts': jax.process_count()}
  batches = mixture.prefetched(mixture.batches(train, weights, config['batch_size'], config['seed'], **hosts))
  measured = next_token_loss(evaluated, chunk=config['loss']['chunk'] or None)

  def first(like: Params) -> Params:
    params = found.read(dataclasses.replace(cfg, lora=None), placement.params)
    if lora is None:
      return params
    begun = lambda params: adapted(params, init(jax.random.key(config['seed'])))
    return jax.jit(begun, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, like))(params)

  def held_out(params: Params) -> dict[str, float]:
    rows = in_order(validation, config['eval_batch_size'], **hosts)
    return evaluate(measured, params, map(placement.batch, rows))

  state = run(
    workdir,
    config,
    init=init,
    first=first,
    loss_fn=next_token_loss(model, chunk=config['loss']['chunk'] or None),
    source=lambda index, state: [batches(index)],
    placement=placement,
    tokens_per_step=lambda index: config['batch_size'] * config['context'],
    flops_per_token=training_flops(cfg, config['context']),
    evaluations={'validation': held_out},
    describe_batch=lambda index: f'batch {index} of seed {config["seed"]}',
  )
  if state is not None:
    print(f'Done: {workdir} has result.json and plots. To see what it learned:')
    print(f'  python -m experiments.generate --model={workdir} --prompt="Once"')


def checked(config: Mapping[str, Any]) -> Lora | None:
  """What learns beside the model, where that stays as it is.

  Raises:
    UserError: what is wrong in the config, as far as it can be known before any data is read.
  """
  if not config['init_from']:
    raise UserError(f'config.init_from is missing: name {language.MODEL}')
  language.sources_of(config['data'])
  for name in ('batch_size', 'context', 'eval_batch_size'):
    if config[name] < 1:
      raise UserError(f'config.{name} = {config[name]} must be at least 1')
  if config['epochs'] <= 0:
    raise UserError(f'config.epochs = {config["epochs"]} must be above 0')
  if not 0 <= config['pretraining']['share'] < 1:
    raise UserError(f'config.pretraining.share = {config["pretraining"]["share"]} must be from 0 up to 1')
  for template in config['data']['templates']:
    if template.count('{}') != 1:
      raise UserError(f'config.data.templates: {template!r} must have {{}} once, where the prompt goes')
  make_optimizer(config['optimizer'], 1)
  return part('lora', config['lora'], 'config.lora') if config['lora'] else None


def training_rows(config: Mapping[str, Any], found: language.Weights) -> tuple[list[Dataset], list[float]]:
  """What is learned from, and shares of a batch: demonstrations and, where it is mixed in, text as in pretraining."""
  rows: list[Dataset] = [answers(config, found, 'train')]
  share = config['pretraining']['share']
  if not share:
    return rows, [1.0]
  data = {**config['pretraining'], 'weights': None, 'separate_documents': True}
  text = language.rows({**config, 'data': data}, found.tokenizer, 'train', drop_remainder=True)
  return [*rows, *text], [1 - share, *(share / len(text) for _ in text)]


def answers(config: Mapping[str, Any], found: language.Weights, split: str) -> Answers:
  """The demonstrations of a split of config.data as rows, and a line that says what there is."""
  data = config['data']
  shown = []
  for name in language.sources_of(data):
    of_source = demonstrations(records(name, split, data['held_out']))
    shown += of_source[: data['cap'] or None]
  texts = [
    teach(found.tokenizer, _asked(demonstration, number, data), found.begin)
    for number, demonstration in enumerate(shown)
  ]
  made = Answers(texts, config['context'], data['packed'])
  print(
    f'{split}: {len(texts):,} demonstrations in {len(made):,} rows, {made.predicted:,} tokens to be predicted; '
    f'{made.cut:,} are cut, {made.dropped:,} dropped'
  )
  return made


def _asked(demonstration: Demonstration, number: int, data: Mapping[str, Any]) -> Demonstration:
  """The demonstration with its prompt in a template, of several each in turn, and as a turn of a conversation."""
  prompt = demonstration.prompt
  if not isinstance(prompt, str):
    return demonstration
  if data['templates']:
    prompt = data['templates'][number % len(data['templates'])].replace('{}', prompt)
  return Demonstration([{'role': 'user', 'content': prompt}] if data['chat'] else prompt, demonstration.answer)


def main(_: Any) -> None:
  train(command.required(CONFIG).to_dict(), command.required(WORKDIR))


if __name__ == '__main__':
  command.run(main)
