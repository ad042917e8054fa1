"""Time and peak memory to load a model from a folder of safetensors, and from GGUF, beside transformers.

  python bench/load_weights.py [--quick]

SmolLM2-135M (asset:smollm2), written once as float32 safetensors. Each load is a process of its own; its time and
memory are from after the imports to when every parameter can be computed with. Memory is the growth of the peak
resident set over the bytes of the parameters in float32: 1 is the least that is possible. Mapped pages of files count.
transformers (needs the extra `parity`) loads the same folder; what it makes of the GGUF file is for information.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

PEAK = """
import gc, json, pathlib, sys, time
def resident(field):
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
def measured(load):
  gc.collect()
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak from here on
  before, start = resident('VmRSS'), time.perf_counter()
  num_bytes = load()
  seconds = time.perf_counter() - start
  print(json.dumps({'seconds': seconds, 'memory': (resident('VmHWM') - before) / num_bytes}))
"""
OURS = """
import jax
from gpt_jax.interop.pretrained import pretrained
jax.block_until_ready(jax.numpy.zeros(1))
def load():
  global kept
  kept = jax.block_until_ready(pretrained(sys.argv[1]).load())
  return sum(leaf.nbytes for leaf in jax.tree.leaves(kept[1]))
measured(load)
"""
THEIRS = """
import torch, transformers
transformers.utils.logging.disable_progress_bar()
def load():
  global kept
  path = pathlib.Path(sys.argv[1])
  where = (path.parent, {'gguf_file': path.name}) if path.is_file() else (path, {})
  kept = transformers.AutoModelForCausalLM.from_pretrained(where[0], dtype=torch.float32, **where[1])
  for parameter in kept.parameters():
    parameter.detach().sum()  # a mapped page is no parameter yet
  return sum(p.nbytes for p in kept.parameters())
transformers.LlamaForCausalLM
measured(load)
"""


def once(program, path):
  done = subprocess.run([sys.executable, '-c', PEAK + program, str(path)], capture_output=True, text=True, check=False)
  if done.returncode:
    raise SystemExit(done.stderr)
  return json.loads(done.stdout.splitlines()[-1])


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--quick', action='store_true', help='one round')
  rounds = 1 if parser.parse_args().quick else 5
  from gpt_jax.data import assets
  from gpt_jax.interop import huggingface
  from gpt_jax.interop.pretrained import pretrained

  (file,) = assets.asset('smollm2').rglob('*.gguf')
  with tempfile.TemporaryDirectory() as folder:
    source = pretrained(str(file))
    model, params = source.load()
    huggingface.save(folder, model.config, params, context=source.context, files=source.files)
    cases = {
      'ours, safetensors': (OURS, folder), 'transformers, safetensors': (THEIRS, folder),
      'ours, GGUF': (OURS, file), 'transformers, GGUF': (THEIRS, file),
    }  # fmt: skip
    found = {name: [] for name in cases}
    for _ in range(rounds):
      for name, (program, path) in cases.items():
        found[name].append(once(program, pathlib.Path(path)))
  print(f'{"":28}{"seconds":>9}{"peak memory / parameters":>27}')
  medians = {}
  for name, runs in found.items():
    medians[name] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    print(f'{name:28}{medians[name]["seconds"]:9.2f}{medians[name]["memory"]:27.2f}')
  ratio = lambda key, kind: medians[f'ours, {kind}'][key] / medians[f'transformers, {kind}'][key]
  print(
    json.dumps(
      {
        'rounds': rounds,
        'safetensors_seconds_over_transformers': ratio('seconds', 'safetensors'),
        'safetensors_peak_memory_over_parameters': medians['ours, safetensors']['memory'],
        'transformers_peak_memory_over_parameters': medians['transformers, safetensors']['memory'],
        'gguf_seconds_over_transformers': ratio('seconds', 'GGUF'),
        'gguf_peak_memory_over_parameters': medians['ours, GGUF']['memory'],
      }
    )
  )


if __name__ == '__main__':
  main()
