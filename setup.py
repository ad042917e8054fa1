"""gpt_jax: the GPT lineage in JAX and Flax."""

import setuptools

ALIGN = ['Markdown>=3.6', 'vaderSentiment>=3.3.2']
GYM = ['reasoning-gym>=0.1.20']
LAUNCHERS = ['ray>=2.40', 'submitit>=1.5']
NOTEBOOKS = ['ipykernel>=6.29', 'papermill>=2.6']
TEST = ['beartype>=0.20', 'mypy>=1.15', 'pytest>=8', 'pytest-xdist>=3.7', 'ruff>=0.9', 'types-Markdown', 'types-tqdm']
PARITY = ['accelerate>=1.0', 'rlax>=0.1.6', 'scrubadub>=2.0', 'torch>=2.5', 'transformers>=4.50', 'trl>=1.16,<1.17']

setuptools.setup(
  name='gpt_jax',
  version='0.1.0',
  description='The GPT lineage as choices of parts of one Transformer, trained by one loop',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=setuptools.find_packages(include=['gpt_jax*', 'experiments*', 'configs*']),
  package_data={'gpt_jax.models': ['*.cc']},
  install_requires=[
    'absl-py>=2.1',
    'array_record>=0.8',
    'flax>=0.12',
    'gguf>=0.17',
    'google-crc32c>=1.5',
    'grain>=0.2.18',
    'etils>=1.9',
    'huggingface_hub>=0.30',
    'importlib_resources>=6',
    'jax>=0.10',
    'jinja2>=3.1',
    'jaxtyping>=0.3',
    'matplotlib>=3.9',
    'ml_collections>=1.1',
    'numpy>=2.0',
    'optax>=0.2.6',
    'orbax-checkpoint>=0.12',
    'pandas>=2.2',
    'safetensors>=0.5',
    'scipy>=1.14',
    'sentencepiece>=0.2',
    'tabulate>=0.9',
    'tensorboardX>=2.6',
    'tensorflow-datasets>=4.9.9',
    'tokenizers>=0.21',
    'tqdm>=4.66',
  ],
  extras_require={
    'align': ALIGN,
    'curation': ['scrubadub>=2.0'],
    'gym': GYM,
    'launchers': LAUNCHERS,
    'notebooks': NOTEBOOKS,
    'test': [*ALIGN, *GYM, *LAUNCHERS, *NOTEBOOKS, *TEST],
    'parity': PARITY,
    'bench': PARITY,
    'cuda': ['jax[cuda13]>=0.10'],
    'tpu': ['jax[tpu]>=0.10'],
  },
)
