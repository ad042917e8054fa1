"""Losses over pairs are those of TRL's trainers on the same logits; only what they ask of a trainer is made up."""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.objectives.preference import dpo_loss, ranking_loss
from gpt_jax.types import Layout
from tests.objectives.test_preference import KEY, WIDTH, Bigrams, Linear

pytestmark = pytest.mark.parity

PAIRS, LENGTH, PROMPT = 6, 9, 3


def pairs(seed: int = 0) -> dict:
  """Two responses to each prompt, of different lengths, the first one chosen."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, WIDTH, (PAIRS, 2, LENGTH))
  tokens[:, 1, :PROMPT] = tokens[:, 0, :PROMPT]
  real = np.arange(LENGTH) < rng.integers(PROMPT + 1, LENGTH + 1, (PAIRS, 2, 1))
  zeros = np.zeros_like(tokens)
  return {
    'tokens': tokens,
    'weights': np.ones((PAIRS, 2), np.float32),
    'scores': (np.array([[1.0, 0.0]]) * rng.integers(1, 4, (PAIRS, 1))).astype(np.float32),
    'said': (real & (np.arange(LENGTH) >= PROMPT)).astype(np.float32),
    'reference_logprobs': rng.normal(size=(PAIRS, 2)).astype(np.float32) * 3 - 8,
    'layout': Layout(zeros, zeros, zeros, real.astype(int), zeros.astype(bool)),
  }


def trainer(**fields) -> types.SimpleNamespace:
  """What TRL's losses read of the trainer they belong to."""
  alone = lambda value: value
  return types.SimpleNamespace(
    model=types.SimpleNamespace(training=False),
    accelerator=types.SimpleNamespace(device='cpu', gather=alone, gather_for_metrics=alone),
    _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
    _total_train_tokens=0,
    **fields,
  )


def stacked(array: np.ndarray):
  """As TRL has a batch: all chosen, then all rejected."""
  import torch

  return torch.tensor(np.concatenate([array[:, 0], array[:, 1]]))


@pytest.mark.parametrize('margin', [0.0, 0.5])
def test_the_reward_loss(margin):
  import torch
  from trl.trainer.reward_trainer import RewardTrainer

  batch, params = pairs(), {'params': jnp.asarray(np.random.default_rng(1).normal(size=WIDTH), jnp.float32)}
  whole = jax.tree.map(jnp.asarray, batch)
  loss_fn = lambda params: ranking_loss(Linear(), margin=margin)(params, whole, KEY)[0].value
  loss, gradient = jax.value_and_grad(loss_fn)(params)
  weights = torch.tensor(np.asarray(params['params']), requires_grad=True)
  tokens, real = stacked(batch['tokens']), stacked(np.asarray(batch['layout'].segment))
  reads = lambda **inputs: types.SimpleNamespace(logits=(weights[tokens] * real).sum(1, keepdim=True))
  inputs = {'margin': torch.tensor(margin * (batch['scores'][:, 0] - batch['scores'][:, 1]))} if margin else {}
  asked = trainer(args=types.SimpleNamespace(center_rewards_coefficient=None))
  theirs = RewardTrainer.compute_loss(asked, reads, inputs)
  theirs.backward()
  np.testing.assert_allclose(loss, theirs.item(), rtol=1e-6)
  np.testing.assert_allclose(gradient['params'], weights.grad, atol=1e-6)


@pytest.mark.parametrize(
  ('ours', 'theirs'),
  [
    ({}, 'sigmoid'),
    ({'form': 'ipo', 'by_token': True}, 'ipo'),
    ({'by_token': True}, 'sigmoid_norm'),
    # of one pair the sorted sums of AOT are the pair, and the smoothing is that of conservative DPO
    ({'label_smoothing': 0.2}, 'aot_unpaired'),
  ],
)
def test_dpo(ours, theirs):
  import torch
  from trl.trainer.dpo_trainer import DPOTrainer

  batch, beta = pairs(), 0.3
  params = {'logits': jnp.asarray(np.random.default_rng(2).normal(size=(WIDTH, WIDTH)), jnp.float32)}
  whole = jax.tree.map(jnp.asarray, batch)
  loss_fn = lambda params: dpo_loss(Bigrams(), beta=beta, **ours)(params, whole, KEY)[0].value
  loss, gradient = jax.value_and_grad(loss_fn)(params)
  table = torch.tensor(np.asarray(params['logits']), requires_grad=True)

  def reads(input_ids, labels, **_):
    """A language model whose head gives no logits but what TRL asks of them."""
    logprobs = torch.log_softmax(table[input_ids[:, :-1]], -1).gather(2, input_ids[:, 1:, None])[..., 0]
    logprobs = torch.where(labels[:, 1:] == -100, 0.0, logprobs)
    zeros = torch.zeros_like(logprobs)
    return types.SimpleNamespace(log_probs=logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

  asked = trainer(
    aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True, f_divergence_type='reverse_kl', beta=beta,
    loss_types=[theirs], loss_weights=[1.0], label_smoothing=ours.get('label_smoothing', 0.0), use_weighting=False,
  )  # fmt: skip
  total = 0.0
  for row in range(PAIRS):
    one = {name: batch[name][row : row + 1] for name in ('tokens', 'said', 'reference_logprobs')}
    reference = torch.tensor(one['reference_logprobs'])
    inputs = {'input_ids': stacked(one['tokens']), 'completion_mask': stacked(one['said']).long()}
    inputs |= {'ref_chosen_logps': reference[:, 0], 'ref_rejected_logps': reference[:, 1]}
    total = total + DPOTrainer._compute_loss(asked, reads, inputs, False) / PAIRS
  total.backward()
  np.testing.assert_allclose(loss, total.item(), rtol=1e-5)
  np.testing.assert_allclose(gradient['logits'], table.grad, atol=1e-5)
