"""What every experiment does before and after its work: flags, one line for bad input, compiled programs kept."""

from collections.abc import Callable, Sequence
import re
import sys
import traceback
from typing import Any, NoReturn

from absl import app, flags, logging
import jax

from gpt_jax import compiler, hosts
from gpt_jax.types import UserError


class Steps(flags.ArgumentParser):
  """Reads FIRST:LAST, steps of training of which the first is not that which compiles."""

  def parse(self, argument: str) -> tuple[int, int]:
    numbers = re.fullmatch(r'(\d+):(\d+)', argument)
    first, last = map(int, numbers.groups()) if numbers else (0, 0)
    if not 2 <= first <= last:
      raise ValueError('write FIRST:LAST, such as 10:12; step 1 compiles, so FIRST is at least 2')
    return first, last


PROFILE = flags.DEFINE(Steps(), 'profile', None, 'FIRST:LAST, steps of training to be traced, into WORKDIR/profile')
ADDRESS = flags.DEFINE_string('coordinator_address', None, 'HOST:PORT of process 0, of a run of several processes')
PROCESSES = flags.DEFINE_integer('num_processes', None, 'how many processes make the run')
PROCESS = flags.DEFINE_integer('process_id', None, 'which of them this is, from 0')
DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'the same three from a TPU slice, Slurm, Open MPI, GKE')
EMERGENCY_DIR = flags.DEFINE_string(
  'emergency_dir', '', 'a folder on a fast disk of each machine, for copies of the state between checkpoints'
)
EMERGENCY_EVERY = flags.DEFINE_integer('emergency_every', 100, 'steps of training from copy to copy', lower_bound=1)


def training() -> dict[str, Any]:
  """What the flags say of how a run is made, whatever it learns; a notebook has none."""
  if not flags.FLAGS.is_parsed():
    return {}
  return {'profile': PROFILE.value, 'emergency': (EMERGENCY_DIR.value, EMERGENCY_EVERY.value)}


def run(main: Callable[[Sequence[str]], None], positional: bool = False) -> None:
  """Runs `main` under absl. Bad input ends in one line on standard error and exit code 2.

  Arguments that are no flags are bad input too, unless they are what the experiment takes: `positional`. Of several
  processes one speaks, but each says what is wrong with it.
  """

  def guarded(arguments: Sequence[str]) -> None:
    if arguments[1:] and not positional:
      _leave(f'{arguments[1]!r} is not a flag: write --NAME=VALUE')
    try:
      compiler.set_up()
      _join()
      with hosts.one_speaks():
        main(arguments)
    except UserError as error:
      _leave(str(error))
    except Exception:
      if not jax.distributed.is_initialized():
        raise
      print(traceback.format_exc(), file=sys.stderr)
      hosts.fail(1)

  logging.set_verbosity(logging.ERROR)
  app.run(guarded, flags_parser=_parse)


def required(flag: flags.FlagHolder) -> Any:
  """The value of a flag that has no default."""
  if flag.value in (None, ''):
    raise UserError(f'--{flag.name} is missing: {flags.FLAGS[flag.name].help}')
  return flag.value


def _join() -> None:
  """Joins the other processes that the flags speak of, if they do."""
  given = {flag.name: flag.value for flag in (ADDRESS, PROCESSES, PROCESS) if flag.value is not None}
  if DISTRIBUTED.value and given:
    raise UserError(f'--distributed finds all by itself: leave out {", ".join("--" + name for name in given)}')
  if given and len(given) < 3:
    missing = [flag.name for flag in (ADDRESS, PROCESSES, PROCESS) if flag.name not in given]
    raise UserError(f'{" and ".join("--" + name for name in missing)} missing beside --{next(iter(given))}')
  if DISTRIBUTED.value or given:
    hosts.join(ADDRESS.value, PROCESSES.value, PROCESS.value)


def _parse(arguments: Sequence[str]) -> list[str]:
  try:
    return flags.FLAGS(arguments)
  except (flags.Error, AttributeError, KeyError, OSError, SyntaxError, TypeError, ValueError, ImportError) as error:
    # config_flags lets the errors of ConfigDict and of loading a file through, some of them many lines long.
    message = str(error.args[0] if isinstance(error, KeyError | AttributeError) and error.args else error)
    misspelt = re.search(r'Did you mean "(.*)" instead of "(.*)"', message)
    if misspelt:
      _leave(f'the config has no field {misspelt[2]!r}; did you mean {misspelt[1]!r}?')
    _leave(' '.join(message.split()))


def _leave(message: str) -> NoReturn:
  print(f'error: {hosts.named()}{message}', file=sys.stderr)
  hosts.fail(2)
