"""Peak of memory of a model and two training steps; prints `{"MiB": ...}`. benchmark_head.py runs it.

On a CPU it is the highest resident size less that of the process before the model is built, on a GPU the highest size
of all tensors.
"""

import argparse
import json
import sys

import torch
from benchmark_models import Sizes, build_model, training_step
from mmengine.config import Config

from mmdet_diffusion.evaluation.cost_card import peak_memory
from mmdet_diffusion.host_memory import keep_freed_memory

STEPS = 2  # the first makes the optimiser's state and the gradients, the second has them


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('--extractor', choices=('ours', 'stock'), required=True)
    parser.add_argument('--device', type=torch.device, required=True)
    parser.add_argument('--boxes', type=int, required=True)
    parser.add_argument('--image', type=int, nargs=2, required=True, metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--objects', type=int, nargs='+', required=True, help='of each image')
    parser.add_argument('--keep-memory', action='store_true', help='that is freed, for later tensors')
    args = parser.parse_args()
    if args.keep_memory:
        keep_freed_memory()
    config = Config.fromfile(args.config)
    before = peak_memory(args.device)
    model = build_model(config, args.boxes, stock=args.extractor == 'stock').to(args.device)
    step = training_step(model, config, Sizes(training_image=tuple(args.image), training_objects=tuple(args.objects)))
    for _ in range(STEPS):
        step()
    print(json.dumps(dict(MiB=peak_memory(args.device) - before)))
    return 0


if __name__ == '__main__':
    sys.exit(main())
