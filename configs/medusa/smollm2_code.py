"""Three heads for SmolLM2-135M, learned from what it answers itself when asked for Python.

Paper     Cai et al. 2024, Medusa: heads alone (Medusa-1), of all kinds of text code gains the most (3.29 of a mean of
          2.8); heads guess the 8,192 most frequent tokens alone (FR-Spec, Zhao et al. 2025)
Data      lines of asset:python_stdlib put as requests for code; 1,400 greedy answers of up to 128 tokens
Command   python -m experiments.medusa --config=configs/medusa/smollm2_code.py --workdir=runs/medusa_code
Result    top-1 accuracy of the three heads on held-out answers .574, .425, .345 (top-5 .783, .650, .556), 2.66 tokens a
          step expected of the whole tree; Vicuna-7B's published heads reach .560, .316, .201. What it writes as code
          repeats itself. On two cores an answer takes .5 to 1 s and a step 1.4 s
"""

from configs.medusa import smollm2


def get_config():
  config = smollm2.get_config()
  config.draft_vocab_size = 8192
  config.num_steps = 800
  config.data.source = 'asset:python_stdlib'
  config.generate.update({'rows': 1400, 'max_new_tokens': 128})
  config.generate.requests = (
    'Write a Python function for this: {}',
    'Write a Python function that works with {}.',
    'Write a Python function that returns {}.',
  )
  return config
