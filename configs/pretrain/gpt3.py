"""GPT-3 in its eight sizes: dense and locally banded layers in turn.

Paper     Brown et al. 2020, table 2.1 and appendix B: 300B tokens in rows of 2,048; Adam .9, .95, 1e-8, clip 1, weight
          decay .1, warm-up over 375M tokens, cosine to 10% over 260B; the batch grows from 32K tokens over the first 4
          to 12B, by size. Not published: which layers are banded, and how wide (families.GPT3_BAND is a choice, another
          is made by --config.model.attention), and how long each size's batch grows. The 175B's 3.2M tokens are 1,536
          rows here, and where a mesh has more than 16 devices for rows, the batch begins with one row for each. The
          text is not public: OpenWebText stands in
Mesh      of each size, for the topology in its line
Plan      python -m experiments.plan --config=configs/pretrain/gpt3.py:175b --topology=v5p:8x8x8
Command   python -m experiments.pretrain --config=configs/pretrain/gpt3.py:125m --workdir=runs/gpt3_125m
Result    not run yet; docs/results/plan has what a step of each size needs
"""

from configs.pretrain import base

# Rows of a batch, the first batch's, billions of tokens over which it grows; the learning rate; steps to 375M, 260B and
# 300B tokens, as the batch grows; the size of the mesh's axis fsdp.
SIZES = {
  '125m': (256, 16, 4, 6.0e-4, (9_792, 520_835, 597_129), 16),  # v5e:4x4
  '350m': (256, 16, 4, 3.0e-4, (9_792, 520_835, 597_129), 16),  # v5e:4x4
  '760m': (256, 16, 4, 2.5e-4, (9_792, 520_835, 597_129), 16),  # v5e:4x4
  '1_3b': (512, 32, 6, 2.0e-4, (5_723, 266_649, 304_796), 32),  # v5e:4x8
  '2_7b': (512, 64, 6, 1.6e-4, (2_862, 261_853, 300_000), 64),  # v5e:8x8
  '6_7b': (1024, 64, 8, 1.2e-4, (2_862, 136_440, 155_514), 16),  # v5p:4x4x4
  '13b': (1024, 128, 8, 1.0e-4, (1_431, 133_243, 152_317), 16),  # v5p:4x4x8
  '175b': (1536, 512, 12, 0.6e-4, (358, 87_421, 100_137), 64),  # v5p:8x8x8
}


def get_config(size='125m'):
  if size not in SIZES:
    raise ValueError(f'gpt3.py:{size}: GPT-3 has no such size; known: {", ".join(SIZES)}')
  rows, first_rows, ramp, learning_rate, (warmup, decay, steps), fsdp = SIZES[size]
  config = base.get_config()
  config.num_steps = steps
  config.batch_size = rows
  config.context = 2048
  config.model.update({'family': f'gpt3_{size}', 'dtype': 'bfloat16', 'remat': 'full'})
  config.data.source = 'hf:Skylion007/openwebtext'
  config.data.held_out = 0.01
  config.loss.chunk = 256
  config.optimizer.update({'learning_rate': learning_rate, 'warmup_steps': warmup, 'decay_steps': decay})
  config.batch_ramp.update({'first_rows': first_rows, 'ramp_tokens': ramp * 1_000_000_000})
  config.mesh.fsdp = fsdp
  config.eval_every = 1000
  config.checkpoint_every = 1000
  return config
