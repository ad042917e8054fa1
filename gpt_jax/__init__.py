"""gpt_jax: the GPT lineage as choices of parts of one Transformer, trained by one loop.

Shapes are written with one alphabet, in annotations and in einsums:

  B batch      T query tokens   S key tokens    D model width    F feed-forward width
  N query heads   K key-value heads   G = N / K   H head width   V vocabulary   L layers
  M heads of Medusa
"""

__version__ = '0.1.0'
