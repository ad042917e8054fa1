"""Rankings as a config describes them; what is wrong with the config, and what a run costs."""

from collections.abc import Callable, Mapping
from typing import Any

from experiments import language, reading, runs
from gpt_jax.data.formats import Ranking, rankings
from gpt_jax.data.ranked import Ranked
from gpt_jax.data.sources import records
from gpt_jax.models.flops import reward_flops
from gpt_jax.names import choose

FORMS: Mapping[str, Callable[[Ranking], list[Ranking]]] = {'grouped': lambda ranking: [ranking], 'pairs': Ranking.pairs}
"""What is a row to learn from, by name: a ranking, or each of its comparisons."""


def check(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config, if nothing is wrong with it that can be known before any data is read; the run adds its num_steps.

  Raises:
    UserError: it names the field.
  """
  runs.check_epochs(config)
  choose('config.data.form', config['data']['form'], FORMS)
  return dict(config)


def rankings_of(config: Mapping[str, Any], split: str) -> list[Ranking]:
  """The rankings of a split of config.data."""
  data = config['data']
  held = [record for name in reading.sources_of(data) for record in records(name, split, data['held_out'])]
  every = rankings(held, least=data['least'], most=data['most'], seed=config['seed'])
  return every[: data['limit'] or None]


def ranked(config: Mapping[str, Any], found: language.Weights, split: str) -> Ranked:
  """The rankings of a split as rows, and a line that says what there is. Held-out ones are whole in every form."""
  form = FORMS[config['data']['form'] if split == 'train' else 'grouped']
  rows = [row for ranking in rankings_of(config, split) for row in form(ranking)]
  made = Ranked(rows, found.tokenizer, config['context'], found.begin)
  comparisons = sum(len(row.pairs()) for row in rows)
  print(f'{split}: {len(rows):,} rankings, {comparisons:,} comparisons; {made.cut:,} of {made.texts:,} texts are cut')
  return made


def flops(config: Mapping[str, Any]) -> float:
  """The arithmetic of a whole run of experiments.reward."""
  form = FORMS[config['data']['form']]
  rows = [row for ranking in rankings_of(config, 'train') for row in form(ranking)]
  texts = len(rows) * max(len(row.responses) for row in rows)
  cfg, context = language.weights(config['init_from']).config, config['context']
  return reward_flops(cfg, context) * config['epochs'] * texts * context
