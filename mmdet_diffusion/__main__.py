"""``python -m mmdet_diffusion`` is the command ``mmdet-diffusion``; under torchrun the only way to it."""

import sys

from mmdet_diffusion_cli import main

if __name__ == '__main__':
    sys.exit(main())
