"""Measure the sizes of a data set's objects and print the lines that a config needs to start from boxes of such sizes.

Example:
    python tools/analysis_tools/measure_sizes.py data/bccd/annotations/train.json

Takes annotation files in COCO format; of training alone, as what is measured becomes part of the model.
`mmdet-diffusion configs new` writes a whole config with them.
"""

import argparse
import sys
from pathlib import Path

from mmdet_diffusion_cli import light_module

object_sizes = light_module('object_sizes')  # importing the package takes seconds


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('annotations', type=Path, help='COCO annotation file of the training set')
    args = parser.parse_args()
    try:
        sizes = object_sizes.measure_sizes(object_sizes.read_annotations(args.annotations))
    except ValueError as error:
        sys.exit(f'measure_sizes.py: {args.annotations}: {error}')
    print(f'# {sizes.num_objects} objects of {args.annotations}; in model.bbox_head:')
    print(object_sizes.config_lines(sizes))


if __name__ == '__main__':
    main()
