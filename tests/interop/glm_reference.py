"""GLM and ChatGLM-6B in NumPy, of the very tensors that their releases have, by their names and in their order.

Du et al. 2022, sections 2.1 to 2.3; Zeng et al. 2022, section 2.1; Su et al. 2021, equation 34; and where these are
silent, what the code released with the weights computes.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any, NamedTuple

import numpy as np

Json = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, np.ndarray]


class Rows(NamedTuple):
  """A batch of texts with blanks, each blank filled behind all of the text."""

  position: np.ndarray
  """Of a token that fills a blank: where the blank stands in the text."""
  block: np.ndarray
  """1, 2, ... in a blank, 0 in the text."""
  text: np.ndarray
  """How many tokens of a row are text."""

  def sees(self) -> np.ndarray:
    """[B, T, S]: everyone reads the text, and what fills blanks reads what was filled in before it."""
    rows, length = self.position.shape
    allowed = np.zeros((rows, length, length), bool)
    for row in range(rows):
      for query in range(length):
        for key in range(length):
          allowed[row, query, key] = key < self.text[row] or key <= query
    return allowed


def filled(*rows: tuple[int, Sequence[tuple[int, int]]]) -> Rows:
  """Rows of so many tokens of text, and for each blank its place and how many tokens fill it."""
  position, block = [], []
  for text, blanks in rows:
    position.append([*range(text), *(place for place, tokens in blanks for _ in range(tokens))])
    block.append([0] * text + [number + 1 for _, tokens in blanks for number in range(tokens)])
  return Rows(np.array(position), np.array(block), np.array([text for text, _ in rows]))


# ---- tensors -------------------------------------------------------------------------------------------------------


def _layer_shapes(prefix: str, width: int, hidden: int) -> Shapes:
  shapes: Shapes = {}
  for name, outputs, inputs in (
    ('attention.query_key_value', 3 * width, width), ('attention.dense', width, width),
    ('mlp.dense_h_to_4h', hidden, width), ('mlp.dense_4h_to_h', width, hidden),
  ):  # fmt: skip
    shapes |= {f'{prefix}{name}.weight': (outputs, inputs), f'{prefix}{name}.bias': (outputs,)}
  for name in ('input_layernorm', 'post_attention_layernorm'):
    shapes |= {f'{prefix}{name}.weight': (width,), f'{prefix}{name}.bias': (width,)}
  return shapes


def glm_shapes(config: Json) -> Shapes:
  width, places = config['hidden_size'], config['max_sequence_length'] + 1
  shapes = {
    'glm.word_embeddings.weight': (config['vocab_size'], width),
    'glm.transformer.position_embeddings.weight': (places, width),
    'glm.transformer.block_position_embeddings.weight': (places, width),
    'glm.transformer.final_layernorm.weight': (width,),
    'glm.transformer.final_layernorm.bias': (width,),
  }
  for layer in range(config['num_layers']):
    shapes |= _layer_shapes(f'glm.transformer.layers.{layer}.', width, 4 * width)
  return shapes


def chatglm_shapes(config: Json) -> Shapes:
  width = config['hidden_size']
  shapes = {
    'transformer.word_embeddings.weight': (config['vocab_size'], width),
    'transformer.final_layernorm.weight': (width,),
    'transformer.final_layernorm.bias': (width,),
    'lm_head.weight': (config['vocab_size'], width),
  }
  for layer in range(config['num_layers']):
    shapes |= _layer_shapes(f'transformer.layers.{layer}.', width, config['inner_hidden_size'])
  return shapes


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
  """Random tensors, none of which can hide at 0 or 1."""
  rng = np.random.default_rng(0)
  scales = lambda name: 'layernorm.weight' in name
  return {name: np.float32(scales(name) + 0.3 * rng.standard_normal(shape)) for name, shape in shapes.items()}


# ---- models --------------------------------------------------------------------------------------------------------


def _affine(tensors: Tensors, name: str, x: np.ndarray) -> np.ndarray:
  return x @ tensors[f'{name}.weight'].T + tensors[f'{name}.bias']


def _norm(tensors: Tensors, name: str, x: np.ndarray, epsilon: float) -> np.ndarray:
  centred = x - x.mean(-1, keepdims=True)
  scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
  return scaled * tensors[f'{name}.weight'] + tensors[f'{name}.bias']


def _mlp(tensors: Tensors, prefix: str, x: np.ndarray) -> np.ndarray:
  x = _affine(tensors, f'{prefix}mlp.dense_h_to_4h', x)
  x = x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
  return _affine(tensors, f'{prefix}mlp.dense_4h_to_h', x)


def _attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, sees: np.ndarray) -> np.ndarray:
  """Of [B, T, N, H]; [B, T, D]."""
  scores = np.einsum('btnh,bsnh->bnts', query, key) / math.sqrt(query.shape[-1])
  weights = np.where(sees[:, None], np.exp(scores - scores.max(-1, keepdims=True)), 0)
  out = np.einsum('bnts,bsnh->btnh', weights / weights.sum(-1, keepdims=True), value)
  return out.reshape(*out.shape[:2], -1)


def glm_logits(tensors: Tensors, config: Json, tokens: np.ndarray, rows: Rows) -> np.ndarray:
  """A norm before each sublayer and one at the end; two learned vectors for where a token stands."""
  tensors = {name.removeprefix('glm.'): tensor.astype(np.float64) for name, tensor in tensors.items()}
  x = tensors['word_embeddings.weight'][tokens]
  x = x + tensors['transformer.position_embeddings.weight'][rows.position]
  x = x + tensors['transformer.block_position_embeddings.weight'][rows.block]
  heads = lambda part: part.reshape(*part.shape[:2], config['num_attention_heads'], -1)
  for layer in range(config['num_layers']):
    prefix = f'transformer.layers.{layer}.'
    normed = _norm(tensors, f'{prefix}input_layernorm', x, 1e-5)
    # All queries, then all keys, then all values.
    query, key, value = np.split(_affine(tensors, f'{prefix}attention.query_key_value', normed), 3, axis=-1)
    attended = _attention(heads(query), heads(key), heads(value), rows.sees())
    x = x + _affine(tensors, f'{prefix}attention.dense', attended)
    x = x + _mlp(tensors, prefix, _norm(tensors, f'{prefix}post_attention_layernorm', x, 1e-5))
  return _norm(tensors, 'transformer.final_layernorm', x, 1e-5) @ tensors['word_embeddings.weight'].T


def _turned(x: np.ndarray, place: np.ndarray) -> np.ndarray:
  """Dimension i of `x` [B, T, N, R] turns with dimension i + R / 2, by place * 10000^(-2 i / R)."""
  half = x.shape[-1] // 2
  angle = place[:, :, None, None] * 10_000.0 ** (-2 * np.arange(half) / x.shape[-1])
  first, second = x[..., :half], x[..., half:]
  return np.concatenate(
    [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)], axis=-1
  )


def chatglm_logits(tensors: Tensors, config: Json, tokens: np.ndarray, rows: Rows) -> np.ndarray:
  """What a sublayer reads is normed, and it is the normed stream that alpha times goes on."""
  tensors = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
  epsilon, heads = config['layernorm_epsilon'], config['num_attention_heads']
  alpha = math.sqrt(2 * 28)  # the released code never tells its blocks num_layers, so that all take its default
  x = tensors['transformer.word_embeddings.weight'][tokens]
  for layer in range(config['num_layers']):
    prefix = f'transformer.layers.{layer}.'
    x = _norm(tensors, f'{prefix}input_layernorm', x, epsilon)
    joined = _affine(tensors, f'{prefix}attention.query_key_value', x)
    # Head by head: its query, its key, its value.
    query, key, value = np.split(joined.reshape(*tokens.shape, heads, -1), 3, axis=-1)
    middle = query.shape[-1] // 2
    query, key = (
      np.concatenate([_turned(part[..., :middle], rows.position), _turned(part[..., middle:], rows.block)], axis=-1)
      for part in (query, key)
    )
    attended = _attention(query, key, value, rows.sees())
    x = alpha * x + _affine(tensors, f'{prefix}attention.dense', attended)
    x = _norm(tensors, f'{prefix}post_attention_layernorm', x, epsilon)
    x = alpha * x + _mlp(tensors, prefix, x)
  return _norm(tensors, 'transformer.final_layernorm', x, epsilon) @ tensors['lm_head.weight'].T
