"""Test a detector: MMDetection's own tools/test.py, with this package imported first."""

import mmdet_diffusion  # noqa: F401  registers the parts
from mmdet_diffusion.launch import run_mmdet_tool

if __name__ == '__main__':
    run_mmdet_tool('test.py')
