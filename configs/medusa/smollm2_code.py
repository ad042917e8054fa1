"""The heads of configs/medusa/smollm2.py, which go on to learn what SmolLM2-135M writes when asked for Python.

Paper     Cai et al. 2024, Medusa: of all kinds of text, code gains the most (3.29 of a mean of 2.8)
Data      lines of asset:python_stdlib put as requests for code; greedy answers of up to 128 tokens
Command   python -m experiments.medusa --config=configs/medusa/smollm2_code.py --workdir=runs/medusa_code
Result    top-1 accuracy of the three heads on held-out answers .519, .388, .306 (top-5 .743, .603, .506), 2.50 tokens a
          step expected of the whole tree: what it writes as code repeats itself. 20 minutes on two cores
"""

from configs.medusa import smollm2


def get_config():
  config = smollm2.get_config()
  config.init_from = 'runs/medusa_smollm2'
  config.num_steps = 300
  config.data.source = 'asset:python_stdlib'
  config.generate.update({'rows': 1200, 'max_new_tokens': 128})
  config.generate.requests = (
    'Write a Python function for this: {}',
    'Write a Python function that works with {}.',
    'Write a Python function that returns {}.',
  )
  return config
