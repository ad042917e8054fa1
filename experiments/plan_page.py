"""A plan as it is read: a page of text, and a row of a table."""

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from gpt_jax.models.flops import SCORES, parameters, parts, training_flops
from gpt_jax.planning.roofline import Figures, Roofline

GIB = 2**30


def mesh_text(of: Any) -> str:
  """The mesh by its axes of more than one device."""
  sizes = {axis: size for axis, size in of.mesh.items() if size != 1}
  return ' x '.join(f'{axis} {size}' for axis, size in sizes.items()) or 'one device'


def row(of: Any, found: Figures) -> dict[str, Any]:
  """The figures of a plan, for a table; memory in GiB, of one device, and rates of the whole cluster."""
  chip, config = of.cluster.chip, of.config
  line = roofline(of, found)
  tokens = config['batch_size'] * config['context']
  peak = of.cluster.chips * chip.flops
  rate = lambda causal: training_flops(of.model, config['context'], causal) * tokens / peak
  return {
    'family': config['model']['family'],
    'topology': of.cluster.name,
    'chips': of.cluster.chips,
    'mesh': mesh_text(of),
    'rows': config['batch_size'],
    'context': config['context'],
    'microbatches': config['microbatches'],
    'remat': of.model.remat or 'none',
    'attention': ', '.join(of.kernels.values()),
    'parameters': parameters(of.model),
    'figures': found.how,
    'fits': found.fits,
    'state_gib': round(found.state / GIB, 4),
    'peak_gib': round(found.peak / GIB, 4),
    'memory_gib': round(found.capacity / GIB, 4),
    **{f'{name}_seconds': round(seconds, 6) for name, seconds in line.times.items()},
    'mfu_palm': round(rate(False) / line.overlapped, 4),
    'mfu_causal': round(rate(True) / line.overlapped, 4),
    'mfu_palm_in_turn': round(rate(False) / line.in_turn, 4),
    'mfu_causal_in_turn': round(rate(True) / line.in_turn, 4),
    'tokens_per_second': round(tokens / line.overlapped),
    'compile_seconds': round(found.compile_seconds, 1),
  }


def roofline(of: Any, found: Figures) -> Roofline:
  """The times of a step at the rates of the cluster's devices."""
  chip = of.cluster.chip
  return Roofline(found.times(chip.flops / chip.devices, chip.bandwidth / chip.devices))


def page(of: Any, found: Figures) -> str:
  """All that is known of a run on a cluster."""
  facts, line = row(of, found), roofline(of, found)
  verdict = 'fits' if found.fits else 'DOES NOT FIT'
  said = f' (the compiler: {found.refusal})' if found.refusal else ''
  shown = [
    f'{facts["family"]} on {of.cluster.name}, {facts["chips"]} chips: mesh {facts["mesh"]}, {facts["rows"]} rows of '
    f'{facts["context"]} tokens, {facts["microbatches"]} microbatches, remat {facts["remat"]}, attention by '
    f'{facts["attention"]}. Figures: {found.how}.',
    '',
    _flops(of),
    '',
    _bytes(of, found),
    f'Memory of a device: {facts["peak_gib"]:.2f} GiB at most, of {facts["memory_gib"]:.2f}: it {verdict}{said}',
    '',
    _exchanges(found),
    '',
    f'TFLOPs of a device: {found.products / 1e12:,.2f} in products of matrices, {found.kernels / 1e12:,.2f} in '
    "attention's own kernels",
    _time(facts, line),
  ]
  return '\n'.join(shown)


def _flops(of: Any) -> str:
  """Of a step of the whole cluster, by part."""
  tokens = of.config['batch_size'] * of.config['context']
  lines = []
  whole, causal = (parts(of.model, of.config['context'], of_those) for of_those in (False, True))
  named = {**whole, f'{SCORES}, causal': causal[SCORES]}
  for name, part in named.items():
    lines.append([name, *(f'{tokens * one:.3e}' for one in (part.forward, part.backward, part.recomputed))])
  for name, some in (('all', whole), ('all, causal', causal)):
    sums = (sum(getattr(part, field) for part in some.values()) for field in ('forward', 'backward', 'recomputed'))
    lines.append([name, *(f'{tokens * one:.3e}' for one in sums)])
  # AdamW: about 12 a parameter, once a step.
  lines.append(['optimiser, about', '', f'{12 * parameters(of.model):.3e}', ''])
  table = tabulate(lines, headers=['FLOPs a step', 'forward', 'backward', 'recomputed'], stralign='right')
  return f'{parameters(of.model):,} parameters\n{table}'


def _bytes(of: Any, found: Figures) -> str:
  held, kept, state = (size / GIB for size in (found.parameters, found.state - found.parameters, found.state))
  rest = max(0.0, found.peak / GIB - state - held)
  return (
    f'GiB of a device: {held:.2f} of parameters, {kept:.2f} of moments, {held:.2f} of gradients, {rest:.2f} of '
    f'activations and all else at the peak; parameters in float32, computed in {of.model.dtype}, '
    f'{of.config["optimizer"]["name"]}'
  )


def _exchanges(found: Figures) -> str:
  lines = [
    [one.kind, one.devices, one.count, f'{one.moved / 1e9:.2f}', f'{one.seconds:.4f}'] for one in found.exchanges
  ]
  headers = ['collectives', 'devices', 'times a step', 'GB sent by a device', 'seconds']
  return tabulate(lines, headers=headers) if lines else 'No collectives.'


def _time(facts: dict[str, Any], line: Roofline) -> str:
  times = ', '.join(f'{name} {seconds:.3f}' for name, seconds in line.times.items())
  return (
    f'Roofline, seconds a step: {times}; bound by {line.bound}\n'
    f"Utilisation if all overlaps: {facts['mfu_palm']:.1%} by PaLM's convention, {facts['mfu_causal']:.1%} with "
    f'attention causal-halved; {facts["tokens_per_second"]:,} tokens a second\n'
    f'Utilisation if nothing does: {facts["mfu_palm_in_turn"]:.1%} and {facts["mfu_causal_in_turn"]:.1%}'
  )


def search_table(tried: Sequence[tuple[Any, Figures]]) -> str:
  """What was tried, one a line."""
  lines = []
  for of, found in tried:
    facts = row(of, found)
    fits = 'yes' if found.fits else 'no'
    lines.append([facts['mesh'], facts['remat'], f'{facts["peak_gib"]:.1f}', fits, f'{facts["mfu_palm"]:.1%}',
                  f'{facts["mfu_palm_in_turn"]:.1%}'])  # fmt: skip
  return tabulate(lines, headers=['mesh', 'remat', 'GiB', 'fits', 'MFU, overlapped', 'in turn'])
