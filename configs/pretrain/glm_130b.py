"""GLM-130B: post-norm by DeepNorm, rotary places, 95% blanks and 5% instructions.

Paper     Zeng et al. 2022, sections 2.1 to 3 and appendix B: 400B tokens in rows of 2,048; three tenths of the rows are
          four texts side by side with words blanked, seven tenths one whose rest is, of uniform length; AdamW at 8e-5
          after a warm-up over .5% of the rows, cosine to a tenth; the batch grows from 192 to 4,224 rows over the first
          2.5%, here from 704, what the mesh takes at once. Of the text English and Chinese halves are named, the Pile
          and WudaoCorpora among them
Mesh      for v5p:8x8x8, 512 chips: heads over one axis of the torus, parameters and rows over the other two
Plan      python -m experiments.plan --config=configs/pretrain/glm_130b.py --topology=v5p:8x8x8
Command   python -m experiments.pretrain --config=configs/pretrain/glm_130b.py --workdir=runs/glm_130b
            --config.data.tokenizer=json:FILE --config.infilling.instructions=file:FILE.jsonl
Result    not run yet
"""

from configs.pretrain import base


def get_config():
  config = base.get_config()
  config.num_steps = 48_552  # of the growing batch, for 400B tokens
  config.batch_size = 4224
  config.microbatches = 11
  config.context = 2048
  config.model.update(
    {
      'family': 'glm_130b',
      'dtype': 'bfloat16',
      'remat': 'full',
      'embedding_dropout': 0.1,
      'attention_dropout': 0.1,
      'residual_dropout': 0.1,
    }
  )
  config.infilling.update({'word': 0.3, 'document': 0.7, 'least_document': 1 / 2048, 'windows': 4})
  config.data.source = 'hf:EleutherAI/the_pile_deduplicated, hf:wikimedia/wikipedia:20231101.zh'
  config.data.weights = (1.0, 1.0)
  config.data.tokenizer = 'json:tokenizer.json'
  config.data.held_out = 0.0001
  config.loss.chunk = 256
  config.batch_ramp.update({'first_rows': 704, 'ramp_tokens': 10_000_000_000})
  config.optimizer.update({'learning_rate': 8e-5, 'warmup_steps': 1388})  # over the first 2B tokens
  config.mesh.update({'fsdp': 64, 'tensor': 8})
  config.eval_every = 1000
  config.checkpoint_every = 500
  return config
