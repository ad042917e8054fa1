"""Tokens per second of one training step (forward, backward, AdamW): ours against PyTorch, eager and compiled.

  python bench/train_step.py [--quick] [--threads 2] [--rounds 7] [--compile_mode default]

Same shape, batch and dtype on the CPU. Each contestant is a process of its own that compiles, warms up and then waits;
the rounds go through them in turn, so that a slow minute of the machine meets all of them, and the figure is the median
round. bfloat16 means float32 parameters and bfloat16 matrix products (torch.autocast there). Needs torch.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time


@dataclasses.dataclass(frozen=True)
class Shape:
  num_layers: int
  num_heads: int
  width: int
  vocab_size: int
  batch: int
  length: int

  @property
  def tokens(self):
    return self.batch * self.length


SHAPES = {
  'gpt2_small': Shape(num_layers=12, num_heads=12, width=768, vocab_size=50257, batch=4, length=256),
  'char': Shape(num_layers=6, num_heads=6, width=384, vocab_size=65, batch=16, length=256),
}
DTYPES = ('float32', 'bfloat16')
CONTESTANTS = ('ours', 'torch_eager', 'torch_compile')
LEARNING_RATE, BETAS, WEIGHT_DECAY = 3e-4, (0.9, 0.95), 0.1


def batch_of(shape):
  """The same random batch for every contestant, int64 [B, T + 1]."""
  import numpy

  return numpy.random.default_rng(0).integers(0, shape.vocab_size, (shape.batch, shape.length + 1))


def ours(shape, dtype):
  """A function that takes one training step of gpt_jax and returns the loss."""
  import jax

  from gpt_jax.models.families import FAMILIES
  from gpt_jax.models.heads import LanguageModel
  from gpt_jax.models.layers import Mlp
  from gpt_jax.models.positions import Learned
  from gpt_jax.objectives.likelihood import next_token_loss
  from gpt_jax.training.loop import init_state, make_step
  from gpt_jax.training.optimizers import make_optimizer

  model = LanguageModel(
    dataclasses.replace(
      FAMILIES['gpt2_small'],
      num_layers=shape.num_layers,
      num_heads=shape.num_heads,
      num_kv_heads=shape.num_heads,
      model_dim=shape.width,
      mlp=Mlp(4 * shape.width),
      vocab_size=shape.vocab_size,
      positions=Learned(shape.length),
      dtype=dtype,
      stacked=False,
    )
  )
  optimizer = make_optimizer(
    {
      'schedule': 'constant',
      'learning_rate': LEARNING_RATE,
      'b1': BETAS[0],
      'b2': BETAS[1],
      'weight_decay': WEIGHT_DECAY,
      'clip_norm': 0.0,
    },
    num_steps=1,
  )
  step = make_step(next_token_loss(model), optimizer, seed=0)
  tokens = jax.numpy.asarray(batch_of(shape), 'int32')
  batch = {'tokens': tokens, 'weights': jax.numpy.ones(tokens.shape)}
  state = jax.jit(lambda key: init_state(model.init(key, tokens[:1, :8]), optimizer))(jax.random.key(0))

  def take_step():
    nonlocal state
    state, metrics = step(state, batch)
    jax.block_until_ready(state)
    return float(metrics['loss'].value)

  return take_step


def theirs(shape, dtype, compiled, mode):
  """The same for PyTorch: GPT-2 with fused attention and fused AdamW, without dropout."""
  import torch
  from torch import nn
  from torch.nn import functional

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      width = shape.width
      self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
      self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
      self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
      heads = self.query_key_value(self.norm1(x)).split(shape.width, dim=2)
      query, key, value = (y.view(*y.shape[:2], shape.num_heads, -1).transpose(1, 2) for y in heads)
      attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
      x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
      return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate='tanh'))

  class Gpt2(nn.Module):
    def __init__(self):
      super().__init__()
      self.tokens = nn.Embedding(shape.vocab_size, shape.width)
      self.positions = nn.Parameter(torch.zeros(shape.length, shape.width))
      self.blocks = nn.ModuleList(Block() for _ in range(shape.num_layers))
      self.norm = nn.LayerNorm(shape.width)
      for weight in self.parameters():
        if weight.ndim == 2:
          nn.init.normal_(weight, std=0.02)

    def forward(self, tokens):
      x = self.tokens(tokens[:, :-1]) + self.positions
      for block in self.blocks:
        x = block(x)
      logits = functional.linear(self.norm(x), self.tokens.weight)
      return functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

  torch.manual_seed(0)
  model = Gpt2()
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
  )
  forward = torch.compile(model, mode=mode) if compiled else model
  tokens = torch.from_numpy(batch_of(shape))

  def take_step():
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype == 'bfloat16'):
      loss = forward(tokens)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()

  return take_step


def serve(contestant, shape, dtype, threads, mode, warmup):
  """A contestant's process: a JSON line when warm, then one for each number of steps read from stdin."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])  # XLA takes its thread count from this
  if contestant == 'ours':
    take_step = ours(shape, dtype)
  else:
    import torch

    torch.set_num_threads(threads)
    take_step = theirs(shape, dtype, contestant == 'torch_compile', mode)
  start = time.perf_counter()
  losses = [take_step() for _ in range(warmup)]
  print(json.dumps({'loss': losses[0], 'warmup_s': time.perf_counter() - start}), flush=True)
  for line in sys.stdin:
    steps = int(line)
    take_step()  # memory and caches are its own again
    start = time.perf_counter()
    for _ in range(steps):
      loss = take_step()
    print(json.dumps({'seconds': (time.perf_counter() - start) / steps, 'loss': loss}), flush=True)


def answer(process):
  line = process.stdout.readline()
  if not line:
    sys.exit(f'bench: {process.args[3]} ended early (exit code {process.wait()}); its own message is above')
  return json.loads(line)


def compete(shape_name, dtype, options):
  """Median seconds per step of every contestant, measured in turns."""
  command = [sys.executable, __file__, '--worker']
  tail = [shape_name, dtype, '--threads', str(options.threads), '--compile_mode', options.compile_mode]
  tail += ['--quick'] * options.quick
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'OMP_NUM_THREADS': str(options.threads)}
  workers, seconds = {}, {name: [] for name in options.contestants}
  try:
    for name in options.contestants:
      process = subprocess.Popen(
        [*command, name, *tail], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
      )
      workers[name] = process
    for name, process in workers.items():
      ready = answer(process)
      print(f'  {shape_name} {dtype} {name}: first loss {ready["loss"]:.4f}, {ready["warmup_s"]:.0f} s to warm up',
            file=sys.stderr)  # fmt: skip
    for _ in range(options.rounds):
      for name, process in workers.items():
        time.sleep(0.5)  # OpenMP's threads spin for a while after their work
        process.stdin.write('1\n' if shape_name == 'gpt2_small' else '3\n')
        process.stdin.flush()
        seconds[name].append(answer(process)['seconds'])
  finally:
    for process in workers.values():
      process.stdin.close()
      process.wait()
  return {name: statistics.median(rounds) for name, rounds in seconds.items()}


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--quick', action='store_true', help='one round, without eager PyTorch')
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--rounds', type=int)
  parser.add_argument('--compile_mode', default='default', help='the mode of torch.compile')
  parser.add_argument('--contestants', nargs='+', choices=CONTESTANTS)
  parser.add_argument('--shapes', nargs='+', choices=SHAPES, default=list(SHAPES))
  parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=DTYPES)
  parser.add_argument('--worker', nargs=3, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.worker:
    contestant, shape_name, dtype = options.worker
    serve(
      contestant, SHAPES[shape_name], dtype, options.threads, options.compile_mode, warmup=1 if options.quick else 3
    )
    return
  options.rounds = options.rounds or (1 if options.quick else 7)
  options.contestants = options.contestants or [c for c in CONTESTANTS if not (options.quick and c == 'torch_eager')]
  ratios, raw = {}, {}
  print(f'{"shape":<12} {"dtype":<10} {"contestant":<14} {"ms/step":>9} {"tokens/s":>9} {"ours/theirs":>12}')
  for shape_name in options.shapes:
    for dtype in options.dtypes:
      seconds = compete(shape_name, dtype, options)
      for name, value in seconds.items():
        rate = SHAPES[shape_name].tokens / value
        raw[f'{shape_name}_{dtype}_{name}_tokens_per_second'] = round(rate, 1)
        ratio = value / seconds['ours'] if 'ours' in seconds else float('nan')
        print(f'{shape_name:<12} {dtype:<10} {name:<14} {value * 1e3:9.1f} {rate:9.0f} {ratio:12.2f}', flush=True)
        if name != 'ours':
          ratios[f'{shape_name}_{dtype}_vs_{name}'] = round(ratio, 3)
  print(json.dumps({**ratios, **raw}))


if __name__ == '__main__':
  main()
