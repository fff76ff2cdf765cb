"""Make a checkpoint ready to publish: MMDetection's own tools/model_converters/publish_model.py.

That script reads no config, so only an import lets it read mmengine's checkpoints on torch >= 2.6.
"""

import mmdet_diffusion  # noqa: F401  registers the parts
from mmdet_diffusion.launch import run_mmdet_tool

if __name__ == '__main__':
    run_mmdet_tool('model_converters/publish_model.py')
