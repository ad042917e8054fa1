"""GLM-large: 335M parameters that fill blanks, of words, of sentences, and of the rest of a text.

Paper     Du et al. 2022, sections 2.1 and 3.1, and the released recipe: rows of 512, Adam at 2e-4 with betas .9, .98,
          warm-up over a twentieth of 200,000 steps; half of the rows blank words, three tenths sentences, a fifth the
          rest. The vocabulary is BERT's. The text, BooksCorpus and Wikipedia, is not to be had as it was
Command   python -m experiments.pretrain --config=configs/pretrain/glm_large.py --workdir=runs/glm_large
            --config.data.tokenizer=json:FILE
Result    not run yet
"""

from configs.pretrain import base


def get_config():
  config = base.get_config()
  config.num_steps = 200_000
  config.batch_size = 1024
  config.microbatches = 8
  config.context = 512
  config.model.update({'family': 'glm_large', 'dtype': 'bfloat16'})
  config.infilling.update({'word': 0.5, 'sentence': 0.3, 'document': 0.2})
  config.data.source = 'hf:wikimedia/wikipedia:20231101.en'
  config.data.tokenizer = 'json:tokenizer.json'
  config.data.held_out = 0.001
  config.loss.chunk = 256
  config.optimizer.update({'learning_rate': 2e-4, 'warmup_steps': 10_000, 'b2': 0.98, 'eps': 1e-6})
  config.eval_every = 5000
  config.checkpoint_every = 5000
  return config
