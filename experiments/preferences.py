"""Rankings as a config describes them, for what learns from preferences."""

from collections.abc import Callable, Mapping
from typing import Any

from experiments import language
from gpt_jax.data.formats import Ranking, rankings
from gpt_jax.data.ranked import Ranked
from gpt_jax.data.sources import records
from gpt_jax.names import choose

FORMS: Mapping[str, Callable[[Ranking], list[Ranking]]] = {'grouped': lambda ranking: [ranking], 'pairs': Ranking.pairs}
"""What is a row, by name: a ranking, or each of its comparisons."""


def checked(config: Mapping[str, Any]) -> Callable[[Ranking], list[Ranking]]:
  """What makes rows of a ranking.

  Raises:
    UserError: what is wrong in the config, as far as it can be known before any data is read.
  """
  language.check_epochs(config)
  return choose('config.data.form', config['data']['form'], FORMS)


def ranked(
  config: Mapping[str, Any], found: language.Weights, split: str, form: Callable[[Ranking], list[Ranking]]
) -> Ranked:
  """The rankings of a split of config.data as rows, and a line that says what there is."""
  data = config['data']
  held = [record for name in language.sources_of(data) for record in records(name, split, data['held_out'])]
  every = rankings(held, least=data['least'], most=data['most'], seed=config['seed'])
  rows = [row for ranking in every[: data['limit'] or None] for row in form(ranking)]
  made = Ranked(rows, found.tokenizer, config['context'], found.begin)
  comparisons = sum(len(row.pairs()) for row in rows)
  print(f'{split}: {len(rows):,} rankings, {comparisons:,} comparisons; {made.cut:,} of {made.texts:,} texts are cut')
  return made
