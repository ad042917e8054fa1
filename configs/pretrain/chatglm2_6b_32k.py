"""ChatGLM2-6B stretched to rows of 32,768 tokens: places are divided, as in ChatGLM2-6B-32K.

Paper     Chen et al. 2023, arXiv 2306.15595: position interpolation. The ratio is that of 32K to the 8K of
          `chatglm2_6b`; the release's stands in its config.json
Command   python -m experiments.pretrain --config=configs/pretrain/chatglm2_6b_32k.py --workdir=runs/chatglm2_32k
            --config.init_from=hf://THUDM/chatglm2-6b
Result    not run yet
"""

from configs.pretrain import chatglm2_6b


def get_config():
  config = chatglm2_6b.get_config()
  config.context = 32_768
  config.batch_size = 8
  config.microbatches = 8
  config.model.rotation = 'rotary(fraction=0.5, scaling=linear(4.0))'
  config.mesh.update({'fsdp': 8, 'sequence': 4})
  return config
