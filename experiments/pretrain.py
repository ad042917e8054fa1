"""Trains a language model on text.

python -m experiments.pretrain --config=configs/pretrain/shakespeare_char.py --workdir=DIR [--config.FIELD=VALUE ...]
"""

from collections.abc import Mapping
import pathlib
from typing import Any

from absl import flags
from ml_collections import config_flags

from experiments import blanks, command, language, reading, runs
from gpt_jax.data import mixture, tokenizers
from gpt_jax.decoding.generate import generate
from gpt_jax.decoding.sampling import Sampling
from gpt_jax.evaluation.speed import cache_bytes, decoding_bytes, decoding_speed
from gpt_jax.models.flops import training_flops
from gpt_jax.models.heads import LanguageModel
from gpt_jax.models.parts import to_config
from gpt_jax.sharding import Placement, make_mesh
from gpt_jax.training.hardware import bandwidth_utilisation
from gpt_jax.training.run import run
from gpt_jax.training.schedules import BatchRamp
from gpt_jax.training.workdir import prepare, write_json
from gpt_jax.types import Params

CONFIG = config_flags.DEFINE_config_file('config', None, 'a file of configs/pretrain')
WORKDIR = flags.DEFINE_string('workdir', None, 'the folder of the run: what it writes, and where it goes on from')


def pretrain(config: Mapping[str, Any], workdir: str) -> None:
  """Trains as `config` says, in `workdir`, from where an earlier run of the same config stopped."""
  runs.check(config, workdir)
  prepare(workdir, config)
  context = config['context']
  cfg, tokenizer, weights = runs.beginning(config, workdir)
  runs.keep_tokenizer(workdir, tokenizer)
  if weights is not None:
    write_json(pathlib.Path(workdir) / language.MODEL_FILE, to_config(cfg))
  runs.check_context(cfg, context)
  how = blanks.of_config(config, cfg)
  rows, shares = blanks.training(config, tokenizer, how)

  evaluated = LanguageModel(cfg.evaluated())
  init, loss_fn = runs.objective(config, cfg)
  placement = Placement(make_mesh(config['mesh']))
  runs.say_kernels(cfg, config['batch_size'], context)
  ramp = BatchRamp(config['batch_size'], context, **config['batch_ramp'])
  batches = mixture.prefetched(mixture.batches(rows, shares, ramp.start, config['seed'], **placement.share))

  def validation(context: int) -> reading.Evaluation:
    num_tokens = config['eval_rows'] * config['context']
    held_out = blanks.as_written(config, tokenizer, cfg, 'validation', context=context, num_tokens=num_tokens)
    return reading.validation(evaluated, held_out, config['eval_batch_size'], placement)

  evaluations = {'validation': validation(context)}
  if how is not None:
    filled = blanks.blanked(config, tokenizer, how, 'validation')
    evaluations['blanks'] = reading.measured(evaluated, filled, config['eval_batch_size'], placement)
    evaluations['cloze'] = blanks.cloze(config, tokenizer, how, evaluated, placement)
  if config['sample']['prompt']:
    evaluations['sample'] = sampled(evaluated, tokenizer, config['sample'], how is not None)
  flops, causal_flops = (training_flops(cfg, context, causal) for causal in (False, True))

  def summary(params: Params) -> dict[str, Any]:
    read = ramp.start(config['num_steps']) * context
    found: dict[str, Any] = {'training_flops': flops * read}
    found['training_flops_causal'] = causal_flops * read
    measure = config['measure']
    for length in measure['contexts']:
      found[f'validation_loss_at_{length}'] = validation(length)(params)['loss']
    if measure['decoding_rows']:
      numbers = {'rows': measure['decoding_rows'], 'num_tokens': measure['decoding_tokens']}
      found['cache_bytes_per_token'] = cache_bytes(cfg)
      speed = decoding_speed(evaluated, params, **numbers)
      used = bandwidth_utilisation(speed / measure['decoding_rows'], decoding_bytes(evaluated, params, **numbers))
      found['speed'] = {'decoding_tokens_per_second': speed, **used}
    return found

  state = run(
    workdir,
    config,
    init=init,
    first=None if weights is None else lambda like: weights.read(cfg, placement.params),
    loss_fn=loss_fn,
    source=lambda index, state: [batches(index)],
    placement=placement,
    tokens_per_step=lambda index: ramp.rows(index) * context,
    flops_per_token=flops,
    causal_flops_per_token=causal_flops,
    evaluations=evaluations,
    summary=summary,
    describe_batch=lambda index: f'rows {ramp.start(index)} to {ramp.start(index + 1) - 1} of seed {config["seed"]}',
    **command.training(),
  )
  if state is not None:
    print(f'Done: {workdir} has result.json and plots. To see what it learned:')
    print(f'  python -m experiments.generate --model={workdir} --prompt="{config["sample"]["prompt"] or "Once"}"')


def sampled(
  model: LanguageModel, tokenizer: tokenizers.Tokenizer, sample: Mapping[str, Any], fills_blanks: bool
) -> reading.Evaluation:
  """Prints what the model writes after a prompt: no number, but the first thing to look at."""

  def evaluation(params: Params) -> dict[str, float]:
    how: dict[str, Any] = {
      'max_new_tokens': sample['max_new_tokens'], 'sampling': Sampling(temperature=sample['temperature']),
    }  # fmt: skip
    if fills_blanks:
      (filled,) = blanks.fill_texts(model, params, tokenizer, [sample['prompt']], **how)
      text = filled.whole
    else:
      prompt = tokenizer.encode(sample['prompt'])
      (completion,) = generate(model, params, [prompt], **how)
      text = [*prompt, *completion.tokens]
    print('-' * 80, tokenizers.decode(tokenizer, text).strip(), '-' * 80, sep='\n', flush=True)
    return {}

  return evaluation


def main(_: Any) -> None:
  pretrain(command.required(CONFIG).to_dict(), command.required(WORKDIR))


if __name__ == '__main__':
  command.run(main)
