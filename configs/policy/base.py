"""Every field of a run that learns from rewards, with what it is when a config says nothing.

Paper     Ouyang et al. 2022, InstructGPT, appendix C.4: KL 0.02 to the model it begins as, batch 512, minibatch 64, one
          epoch, clip 0.2, no discount, constant rate after 10 iterations of warm-up, EMA 0.992, temperature 1,
          PPO-ptx's gamma 27.8 with 8 pieces of text an episode; GAE's 0.95 and the value's 0.1 and 0.2 are those of
          lm-human-preferences
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.pretrain import base as pretrain


def get_config() -> ConfigDict:
  """A run that is complete but for its model, reward and data."""
  return ConfigDict({
    'init_from': '',  # the language model that it begins as and is held to: what --model takes
    'model': {  # what of it is replaced; None: nothing. There is no dropout (Ziegler et al. 2019)
      'dtype': placeholder(str),  # of computation
      'remat': placeholder(str),
      'attention_kernel': placeholder(str),
    },
    'reward': {  # one of the two
      'model': '',  # a finished run of experiments.reward, of the same tokenizer
      'function': '',  # 'vader', 'answer', 'gym': a function of prompt and response
      'whiten': False,  # True: scores of a rollout at mean 0 and deviation 1, before the KL (LLaMA-2: whitened logits)
    },
    'num_rollouts': 100,
    'epochs': 1,  # times that the responses of a rollout are learned from (lm-human-preferences: 4)
    'minibatches': 8,  # that they are cut into, an update each
    'microbatches': 1,
    'seed': 0,
    'data': {
      'source': '',  # of prompts: asset:NAME, file:PATH.jsonl, tfds:NAME or hf:NAME; several by commas
      'held_out': 0.1,  # fraction, where a source has no validation split of its own
      'prompt_tokens': 64,  # of a prompt at most; longer ones are left out
      'beginnings': False,  # True: prompts are the first so many tokens of texts
    },
    'rollout': {
      'prompts': 512,
      'num_samples': 1,  # responses to each prompt
      'max_new_tokens': 24,
      'temperature': 1.0,
      'ends': True,  # the end of a text ends a response; False: all have max_new_tokens (lm-human-preferences)
      'truncate_at': '',  # such as '.': a response is cut behind the first ...
      'truncate_after': 0,  # ... from this number of tokens on (lm-human-preferences: 16)
      'missing_end_reward': placeholder(float),  # of a response that did not end (-1: EOS trick); None: the reward's
    },
    'estimator': 'gae',  # of what tokens were worth; 'grpo', 'rloo': by the responses to one prompt, without a critic
    'gae': {
      'discount': 1.0,
      'decay': 0.95,  # lambda
      'whiten_rewards': False,  # True: as lm-human-preferences, their mean kept
      'whiten_advantages': True,
    },
    'grpo': {
      'scaled': True,  # by the deviation of the group; False: Dr. GRPO
    },
    'critic': 'own',  # begins as the reward model; 'shared': a head on the policy's hidden states, of zeros
    'kl': {  # at each token, in the rewards
      'coefficient': 0.02,
      'target': 0.0,  # nats a response that the coefficient is adapted to (lm-human-preferences: 6); 0: it is fixed
      'horizon': 10_000.0,  # episodes
    },
    'loss': {
      'clip_range': 0.2,
      'value_clip_range': 0.2,
      'value_coefficient': 0.1,
      'entropy_coefficient': 0.0,
      'kl_coefficient': 0.0,  # of GRPO's KL in the loss (0.04 in its paper)
      'by_response': False,  # True: a mean of the means of responses (GRPO)
      'chunk': 0,  # places of a row whose logits exist at once; 0: all
    },
    'pretraining': {  # PPO-ptx: text that is learned from besides
      'coefficient': 0.0,  # gamma; 0: none
      'source': '',
      'held_out': 0.1,
      'context': 64,  # tokens of a row
      'per_episode': 8.0,  # rows for each response of an update
      'eval_rows': 512,
    },
    'optimizer': {
      **pretrain.get_config().optimizer,
      'learning_rate': 1e-5,
      'schedule': 'constant',
      'warmup_steps': 80,
      'weight_decay': 0.0,
      'ema': 0.992,
    },
    'evaluation': {
      'prompts': 256,  # held-out ones that are written on from
      'judge': '',  # a function of 'reward.function' that nothing learns from
      'positive_above': 0.05,  # share of responses that the judge scores higher (VADER's own line)
    },
    'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1, 'sequence': 1},
    'log_every': 1,
    'eval_every': 0,  # rollouts; 0: at the start and the end only
    'eval_batch_size': 32,
    'checkpoint_every': 0,  # rollouts
    'keep_checkpoints': 1,
  })  # fmt: skip
