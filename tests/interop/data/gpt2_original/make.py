"""Makes this folder: a small GPT-2 with the code and under the names of OpenAI's release, saved by TensorFlow.

pip install tensorflow-cpu safetensors, then: python make.py SRC, where SRC is the folder src of openai/gpt-2.
expected.safetensors has the numbers that TensorFlow's own reader finds, and the logits of the released code.
"""

import json
import pathlib
import sys
import types

import numpy as np
from safetensors.numpy import save_file
import tensorflow.compat.v1 as tf

HERE = pathlib.Path(__file__).parent
HPARAMS = {'n_vocab': 11, 'n_ctx': 6, 'n_embd': 8, 'n_head': 2, 'n_layer': 2}
TOKENS = [[3, 1, 4, 1, 5, 9], [2, 6, 10, 0, 8, 7]]


def released_code(source: str) -> types.ModuleType:
  """src/model.py, for which TensorFlow 1 and its contrib stand in."""
  sys.modules['tensorflow'] = tf
  sys.modules['tensorflow.contrib.training'] = types.SimpleNamespace(HParams=types.SimpleNamespace)
  sys.path.insert(0, source)
  import model

  return model


def main(source: str) -> None:
  code = released_code(source)
  tf.disable_v2_behavior()
  rng = np.random.default_rng(0)
  logits = code.model(types.SimpleNamespace(**HPARAMS), tf.constant(TOKENS))['logits']
  variables = tf.global_variables()
  with tf.Session() as session:
    for variable in variables:
      # None at its starting value, so that none can hide.
      variable.load(float(variable.op.name.endswith('/g')) + 0.3 * rng.standard_normal(variable.shape), session)
    tf.train.Saver(save_relative_paths=True).save(session, str(HERE / 'model.ckpt'), write_meta_graph=False)
    found = session.run(logits)
  reader = tf.train.load_checkpoint(str(HERE / 'model.ckpt'))
  numbers = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
  save_file({**numbers, 'tokens': np.array(TOKENS, np.int32), 'logits': found}, HERE / 'expected.safetensors')
  (HERE / 'hparams.json').write_text(json.dumps(HPARAMS) + '\n')


if __name__ == '__main__':
  main(sys.argv[1])
