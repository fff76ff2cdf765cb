"""Train a detector: MMDetection's own tools/train.py, with this package imported first."""

import runpy
from pathlib import Path

import mmdet

import mmdet_diffusion  # noqa: F401  registers the parts

if __name__ == '__main__':
    runpy.run_path(str(Path(mmdet.__file__).parent / '.mim' / 'tools' / 'train.py'), run_name='__main__')
