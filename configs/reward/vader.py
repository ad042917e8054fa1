"""What people find positive, for the model of configs/instruct/snippets.py: rankings of reviews, editorials and tweets.

Paper     Ouyang et al. 2022, InstructGPT, section 3.5: rankings of 4 to 9, all comparisons in one batch, one epoch,
          cosine to 10%, head N(0, 1 / (d + 1)); learning rate and batch are of this size of model
Data      asset:vader, each text rated by some twenty people, ranked by its mean rating
Command   python -m experiments.reward --config=configs/reward/vader.py --workdir=runs/reward
Result    66.7% of 7,040 held-out comparisons right, loss 0.605 nats a comparison, and as sure as it is right
          (calibration within 2 points); five minutes on two cores. As good from runs/snippets: 67.2%, 0.598
"""

from configs.reward import base


def get_config():
  config = base.get_config()
  config.init_from = 'runs/instruct'
  config.context = 48
  config.batch_size = 16
  config.data.source = 'asset:vader'
  config.optimizer.learning_rate = 3e-4
  config.optimizer.warmup_steps = 10
  config.eval_every = 100
  return config
