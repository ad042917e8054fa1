"""How fast SmolLM2-135M writes: ours against transformers and llama.cpp, and ours with drafts against ours without.

  python bench/decode.py [--quick] [--medusa DIR] [--per_kind 4] [--rounds 3]

Each contestant is a process of its own that loads the same weights (asset:smollm2 in float32), compiles, warms up and
waits; the rounds go through them in turn, and medians count. All write greedily, `new_tokens` tokens after each prompt,
answers that end earlier gone on from; reading the prompt is in the time. The prompts are the 64 of bench/prompts.py, of
four kinds, asked by the chat template; a batch holds prompts of one kind.

`share` is of the memory bandwidth, which is measured in the same run by summing a large array: the bytes of all
parameters, once for each step of the model, over time. llama.cpp is measured where llama-cpp-python is installed: it is
no requirement of this project, as it is built from source. Needs torch and transformers. --medusa takes a folder that
experiments.medusa left.

The second table has our own speculation by kind of prompt and batch size, over plain greedy decoding of the same model
in the same process, of answers that end where they do, at `table_tokens` tokens at the latest: tokens a step, what a
step takes over a plain one, the acceptance rate alpha, the speed-up measured, and the one predicted by (1 - alpha^(g +
1)) / ((1 - alpha) (g c + 1)), where c is what a draft's token costs over one of the model's (Leviathan et al. 2023,
theorem 3.8; it takes reading g + 1 tokens to cost what reading one does).
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from bench.prompts import PROMPTS

PEERS = ('ours', 'ours_int8', 'transformers', 'transformers_compiled', 'llama_cpp', 'llama_cpp_q8_0')
BATCHES = (1, 8)
TABLE_BATCHES = (1, 2, 4, 8, 16)


# ---- contestants: each gives a function of (prompts of tokens, number of new tokens) ---------------------------------


def ours(folder, quantization=None):
  from experiments import language
  from gpt_jax import compiler
  from gpt_jax.decoding.generate import generate
  from gpt_jax.decoding.sampling import Sampling
  from gpt_jax.models.parts import part

  compiler.set_up()
  changed = {} if quantization is None else {'quantization': part('quantization', quantization)}
  trained = language.load(folder, stacked=False, **changed)

  def write(prompts, number, **how):
    found = generate(
      trained.model, trained.params, prompts, max_new_tokens=number, sampling=Sampling(temperature=0),
      stride=number, **how,
    )  # fmt: skip
    assert 'stop_ids' in how or all(len(completion.tokens) == number for completion in found)
    return found

  write.trained = trained
  return write


def transformers(folder, compiled=False):
  import torch
  import transformers as library

  library.logging.set_verbosity_error()
  torch.set_num_threads(os.cpu_count())
  model = library.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
  if compiled:
    model.generation_config.cache_implementation = 'static'
    model.forward = torch.compile(model.forward)

  def write(prompts, number):
    length = max(map(len, prompts))
    if compiled:  # anew for each length
      length += -length % 64
    ids = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = model.generate(
      ids, attention_mask=mask, max_new_tokens=number, min_new_tokens=number, do_sample=False, pad_token_id=0
    )
    assert out.shape[1] == length + number

  return write


def llama_cpp(path):
  import llama_cpp as library
  import numpy as np

  if path.endswith('q8_0.gguf') and not pathlib.Path(path).exists():
    how = library.llama_model_quantize_default_params()
    how.ftype = library.LLAMA_FTYPE_MOSTLY_Q8_0
    library.llama_model_quantize(path.replace('q8_0', 'f32').encode(), path.encode(), how)
  model = library.Llama(path, n_ctx=1024, n_threads=os.cpu_count(), n_batch=512, verbose=False)

  def write(prompts, number):
    assert len(prompts) == 1, 'its Python binding takes one text at a time'
    model.reset()
    model.eval(prompts[0])
    for _ in range(number):
      model.eval([int(np.argmax(model.scores[model.n_tokens - 1]))])

  return write


def contestant(name, folder):
  if name.startswith('llama_cpp'):
    return llama_cpp(f'{folder}/{"q8_0" if name.endswith("q8_0") else "f32"}.gguf')
  if name.startswith('transformers'):
    return transformers(f'{folder}/hf', compiled=name.endswith('compiled'))
  return ours(f'{folder}/hf', 'int8' if name.endswith('int8') else None)


def serve(name, folder):
  """Answers each line, a batch of prompts and a number, with the seconds it took; the first answer is to nothing."""
  write = contestant(name, folder)
  print(json.dumps('ready'), flush=True)
  for line in sys.stdin:
    prompts, number = json.loads(line)
    start = time.perf_counter()
    write(prompts, number)
    print(json.dumps(time.perf_counter() - start), flush=True)


# ---- against peers --------------------------------------------------------------------------------------------------


def bandwidth():
  """Bytes a second that a sum of 512 MiB reads."""
  import jax
  import jax.numpy as jnp

  array, total = jnp.ones(1 << 27), jax.jit(jnp.sum)
  seconds = []
  for _ in range(8):
    start = time.perf_counter()
    total(array).block_until_ready()
    seconds.append(time.perf_counter() - start)
  return array.nbytes / min(seconds)


def batches(rows, size):
  """Prompts in batches of one size; what does not fill one is left out."""
  return [rows[first : first + size] for first in range(0, len(rows) - size + 1, size)]


def compete(names, folder, prompts, options):
  """Tokens a second of each contestant and batch size."""
  processes, rates = {}, {}
  for name in names:
    process = subprocess.Popen(
      [sys.executable, __file__, '--worker', name, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      stderr=None if options.verbose else subprocess.DEVNULL, text=True,
    )  # fmt: skip
    if not (line := process.stdout.readline()):
      print(f'{name}: not to be had here (--verbose shows why)', file=sys.stderr)
      continue
    assert json.loads(line) == 'ready'
    processes[name] = process

  def ask(name, batch):
    process = processes[name]
    process.stdin.write(json.dumps([batch, options.new_tokens]) + '\n')
    process.stdin.flush()
    return json.loads(process.stdout.readline())

  try:
    for size in BATCHES:
      rows = {kind: ids[: max(size, options.per_kind)] for kind, ids in prompts.items()}
      work = [batch for kind in options.kinds for batch in batches(rows[kind], size)]
      able = [name for name in processes if size == 1 or not name.startswith('llama_cpp')]
      seconds = {name: [] for name in able}
      for name in able:
        for batch in work:  # every shape is compiled before it is measured
          ask(name, batch)
      for _ in range(options.rounds):
        for name in able:
          time.sleep(0.5)  # OpenMP's threads spin for a while after their work
          seconds[name].append(sum(ask(name, batch) for batch in work))
      for name in able:
        rates[name, size] = len(work) * size * options.new_tokens / statistics.median(seconds[name])
        print(f'  batch {size} {name}: {rates[name, size]:.1f} tokens/s', file=sys.stderr, flush=True)
  finally:
    for process in processes.values():
      process.stdin.close()
      process.wait()
  return rates


# ---- with drafts ----------------------------------------------------------------------------------------------------


def drafts_of(write, options):
  """Drafts by name, with what a drafted token costs over one of the model's own: the bytes that are read for it."""
  import jax

  from experiments.heads import load_medusa
  from gpt_jax.decoding.drafts import PromptLookup, first_layers
  from gpt_jax.decoding.tree import Tree

  model, params = write.trained.model, write.trained.params
  size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
  fewer = first_layers(model, params, model.config.num_layers // 5, 3)
  found = {'lookup': (PromptLookup(7), 0.0), 'own layers': (fewer, size(fewer.params) / size(params))}
  if options.medusa:
    draft = load_medusa(options.medusa, model.config)
    parents, choices = (numbers[: options.nodes] for numbers in (draft.tree.parents, draft.tree.choices))
    draft = dataclasses.replace(draft, tree=Tree(parents, choices))  # nodes stand in the order of their worth
    found['medusa'] = (draft, size(draft.params) / size(params) / draft.tree.max_depth)
  return found


def speculate(write, prompts, options):
  """A line for each draft, batch size and kind of prompt."""
  from gpt_jax.decoding.steps import bucket

  drafts, lines = drafts_of(write, options), []
  ending = {'stop_ids': write.trained.tokenizer.conventions.ends}
  contenders = {'': ending} | {name: {'draft': draft, **ending} for name, (draft, _) in drafts.items()}
  for size in options.batches:
    for kind in options.kinds:
      work = batches(prompts[kind][: options.table_per_kind], size)
      results = {name: [] for name in contenders}
      seconds = dict.fromkeys(contenders, 0.0)
      for batch in {bucket(max(map(len, batch))): batch for batch in work}.values():
        for how in contenders.values():
          write(batch, options.table_tokens, **how)  # compiles
      for batch in work:
        for name, how in contenders.items():
          start = time.perf_counter()
          results[name] += write(batch, options.table_tokens, **how)
          seconds[name] += time.perf_counter() - start
      for name, (draft, cost) in drafts.items():
        steps, tried, kept = (sum(getattr(r, field) for r in results[name]) for field in ('steps', 'tried', 'kept'))
        step, plain_step = seconds[name] / steps, seconds[''] / sum(r.steps for r in results[''])
        alpha, gamma = kept / max(tried, 1), draft.tree.max_depth
        most = (1 - alpha ** (gamma + 1)) / (1 - alpha) if alpha < 1 else gamma + 1
        pairs = zip(results[name], results[''], strict=True)
        line = {
          'draft': name,
          'kind': kind,
          'batch': size,
          'tokens_per_step': round(sum(len(r.tokens) - 1 for r in results[name]) / steps, 2),
          'step_over_plain': round(step / plain_step, 2),
          'alpha': round(alpha, 3),
          'predicted': round(most / (gamma * cost + 1), 2),
          'speedup': round(seconds[''] / seconds[name], 2),
          'same_texts': sum(a.tokens.tolist() == b.tokens.tolist() for a, b in pairs),
          'texts': len(results[name]),
        }
        print('  ' + ', '.join(f'{key} {value}' for key, value in line.items()), file=sys.stderr, flush=True)
        lines.append(line)
  return lines


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--quick', action='store_true', help='questions alone, 16 tokens, one round, no compiled peer')
  parser.add_argument('--medusa', help='a folder that experiments.medusa left, of heads for asset:smollm2')
  parser.add_argument('--nodes', type=int, default=8, help="of Medusa's tree, the root counted")
  parser.add_argument('--per_kind', type=int, help='prompts of each kind, one at a time, for the comparison with peers')
  parser.add_argument('--table_per_kind', type=int, help='prompts of each kind for the table of drafts')
  parser.add_argument('--kinds', nargs='*', choices=tuple(PROMPTS), help='of prompts; not given: all')
  parser.add_argument('--new_tokens', type=int)
  parser.add_argument('--table_tokens', type=int)
  parser.add_argument('--rounds', type=int)
  parser.add_argument('--peers', nargs='*', choices=PEERS)
  parser.add_argument('--batches', nargs='*', type=int, help='of the table of drafts')
  parser.add_argument('--quantization', help="of the model in the table of drafts, such as int8; peers' is float32")
  parser.add_argument('--verbose', action='store_true', help='show what the contestants say')
  parser.add_argument('--worker', nargs=2, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.worker:
    serve(*options.worker)
    return
  quick = options.quick
  options.rounds = options.rounds or (1 if quick else 3)
  options.new_tokens = options.new_tokens or (16 if quick else 48)
  options.table_tokens = options.table_tokens or (16 if quick else 96)
  options.per_kind = options.per_kind or (1 if quick else 2)
  options.table_per_kind = options.table_per_kind or (2 if quick else 16)
  options.batches = TABLE_BATCHES if options.batches is None and not quick else options.batches or (1,)
  options.kinds = options.kinds or (('question', 'edit') if quick else tuple(PROMPTS))
  peers = PEERS if options.peers is None else options.peers
  peers = [name for name in peers if not (quick and name == 'transformers_compiled')]

  from tabulate import tabulate

  with tempfile.TemporaryDirectory() as folder:
    for target in ('hf', 'f32.gguf'):
      command = ['-m', 'experiments.convert', '--source=asset:smollm2', f'--target={folder}/{target}']
      subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    from experiments import language

    trained = language.load(f'{folder}/hf', stacked=False)
    prompts = {
      kind: [language.chat_ids(trained, [{'role': 'user', 'content': text}]) for text in kinds]
      for kind, kinds in PROMPTS.items()
    }
    num_bytes = pathlib.Path(f'{folder}/hf/model.safetensors').stat().st_size
    del trained
    peak = bandwidth()
    rates = compete(peers, folder, prompts, options)
    lines = speculate(ours(f'{folder}/hf', options.quantization), prompts, options)

  print(f'\nmemory bandwidth {peak / 1e9:.1f} GB/s; {num_bytes / 1e6:.0f} MB of parameters in float32')
  width = {'ours_int8': None, 'llama_cpp_q8_0': None}  # of other sizes
  rows = [
    [name, size, rate, None if name in width else rate / size * num_bytes / peak, rates.get(('ours', size), 0) / rate]
    for (name, size), rate in rates.items()
  ]
  print(tabulate(rows, ['contestant', 'batch', 'tokens/s', 'share', 'ours over it'], floatfmt='.2f'))
  print('\n' + tabulate(lines, headers='keys'))
  ratio = lambda size, mine, theirs: (
    round(rates[mine, size] / rates[theirs, size], 3) if {(mine, size), (theirs, size)} <= set(rates) else None
  )
  best = lambda names: max((x['speedup'] for x in lines if x['batch'] == 1 and x['draft'] in names), default=None)
  print(
    json.dumps(
      {
        'float32_batch1_vs_transformers': ratio(1, 'ours', 'transformers'),
        'float32_batch8_vs_transformers': ratio(8, 'ours', 'transformers'),
        'float32_batch1_vs_transformers_compiled': ratio(1, 'ours', 'transformers_compiled'),
        'float32_batch1_vs_llama_cpp': ratio(1, 'ours', 'llama_cpp'),
        'int8_batch1_vs_float32': ratio(1, 'ours_int8', 'ours'),
        'int8_batch1_vs_llama_cpp_q8_0': ratio(1, 'ours_int8', 'llama_cpp_q8_0'),
        'speculative_batch1_best_vs_greedy': best(('lookup', 'own layers')),
        'medusa_batch1_best_vs_greedy': best(('medusa',)),
        'tokens_per_second': {f'{name}_batch{size}': round(rate, 1) for (name, size), rate in rates.items()},
        'bandwidth_gb_per_second': round(peak / 1e9, 1),
        'drafts': lines,
      }
    )
  )


if __name__ == '__main__':
  main()
