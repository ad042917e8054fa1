"""ChatGLM2-6B, trained on with rows of 8,192 tokens, as its dialogues were.

Paper     the release's README: multi-query attention in two groups, causal, FlashAttention, 8K rows in dialogue
Command   python -m experiments.pretrain --config=configs/pretrain/chatglm2_6b.py --workdir=runs/chatglm2
            --config.init_from=hf://THUDM/chatglm2-6b
Result    not run yet
"""

from configs.pretrain import base


def get_config():
  config = base.get_config()
  config.num_steps = 1000
  config.batch_size = 32
  config.microbatches = 32
  config.context = 8192
  config.model.update({'family': 'chatglm2_6b', 'dtype': 'bfloat16', 'remat': 'full'})
  config.data.source = 'hf:wikimedia/wikipedia:20231101.zh'
  config.data.held_out = 0.001
  config.data.separate_documents = True
  config.loss.chunk = 256
  config.optimizer.update({'learning_rate': 2e-5, 'warmup_steps': 50})
  config.mesh.update({'fsdp': 8})
  config.checkpoint_every = 200
  return config
