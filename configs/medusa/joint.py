"""Heads for the model that `make quickstart` trains, which learns along with them by LoRA.

Paper     Cai et al. 2024, Medusa: joint training (Medusa-2), weight 0.2, LoRA of rank 32 and alpha 16 with dropout
          0.05, heads at four times the model's learning rate
Data      asset:shakespeare, as that run
Command   python -m experiments.medusa --config=configs/medusa/joint.py --workdir=runs/joint
Result    not measured yet
"""

from configs.medusa import shakespeare_char


def get_config():
  config = shakespeare_char.get_config()
  config.joint.weight = 0.2
  return config
