"""Test one checkpoint at several settings of the dial: sampling steps x boxes, each over some sampling seeds.

Example:
    python tools/analysis_tools/test_settings.py CONFIG CHECKPOINT --settings 1x100 4x100 1x300 --seeds 0 1 2

A setting is STEPSxBOXES. Prints a Markdown table of AP, AP50 and seconds per image; `--out` saves the same as JSON.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path
from statistics import mean, stdev

import torch
from mmengine.config import Config, DictAction
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdet_diffusion.diffusion import sampling_time_pairs
from mmdet_diffusion.host_memory import keep_freed_memory
from mmdet_diffusion.input_checks import refuse_foreign_checkpoint, refuse_missing_data
from mmdet_diffusion.launch import with_config_path


def parse_setting(text: str) -> tuple[int, int]:
    """``4x100`` to (4 steps, 100 boxes)."""
    match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)
    if match is None:
        raise argparse.ArgumentTypeError(f'{text!r} is not STEPSxBOXES, such as 4x100')
    return int(match[1]), int(match[2])


def build_runner(config: str, checkpoint: str, work_dir: str, cfg_options: dict | None) -> Runner:
    """A runner with the checkpoint loaded, ready to test."""
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(cfg_options or {})
    refuse_missing_data(cfg, ('test_dataloader', 'test_evaluator'))
    cfg.work_dir, cfg.load_from, cfg.log_level = work_dir, checkpoint, 'WARNING'
    runner = Runner.from_cfg(cfg)
    runner.register_hook(TestClock())
    return runner


class TestClock(Hook):
    """Seconds from the first batch to the last, without loading the model and without the evaluation."""

    def before_test_epoch(self, runner: Runner) -> None:
        """Start."""
        self.start = time.perf_counter()

    def after_test_iter(self, runner: Runner, *args, **kwargs) -> None:
        """The last batch so far."""
        self.seconds = time.perf_counter() - self.start


def measure(runner: Runner, steps: int, boxes: int, seed: int) -> dict[str, float]:
    """Metrics and seconds per image of one setting."""
    dial = dict(sampling_timesteps=steps, num_proposals=boxes, seed=seed)
    head = runner.model.bbox_head
    head.test_cfg = dict(head.test_cfg or {}, **dial)
    metrics = runner.test()
    clock = next(hook for hook in runner.hooks if isinstance(hook, TestClock))
    seconds = clock.seconds / len(runner.test_dataloader.dataset)
    return dict(AP=metrics['coco/bbox_mAP'], AP50=metrics['coco/bbox_mAP_50'], seconds=seconds)


def summarize(values: list[float]) -> str:
    """Mean, with the standard deviation where there are several values."""
    return f'{mean(values):.3f}' + (f' ± {stdev(values):.3f}' if len(values) > 1 else '')


def table(results: list[dict]) -> str:
    """Markdown table of :func:`measure`'s results."""
    lines = ['| steps | boxes | AP | AP50 | s / image |', '| ---: | ---: | ---: | ---: | ---: |']
    for result in results:
        runs = result['runs']
        cells = [summarize([run[key] for run in runs]) for key in ('AP', 'AP50')]
        seconds = mean(run['seconds'] for run in runs)
        lines.append(f'| {result["steps"]} | {result["boxes"]} | {cells[0]} | {cells[1]} | {seconds:.3f} |')
    return '\n'.join(lines)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='path, or name of one of this package')
    parser.add_argument('checkpoint')
    parser.add_argument('--settings', nargs='+', type=parse_setting, required=True, metavar='STEPSxBOXES')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--out', type=Path, help='JSON file to write')
    parser.add_argument('--work-dir', default='work_dirs/test_settings')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args()
    if not Path(args.checkpoint).is_file():
        parser.error(f'there is no checkpoint {args.checkpoint}')
    if args.out and (args.out.is_dir() or not args.out.resolve().parent.is_dir()):
        parser.error(f'--out {args.out} cannot be written: it is a folder, or its folder does not exist')
    keep_freed_memory()
    runner = build_runner(*with_config_path([args.config]), args.checkpoint, args.work_dir, args.cfg_options)
    refuse_foreign_checkpoint(runner.model, torch.load(args.checkpoint, map_location='cpu'), args.checkpoint)
    for steps, _ in args.settings:  # a wrong one shows now, not after the others ran
        sampling_time_pairs(runner.model.bbox_head.box_sampler.num_train_timesteps, steps)
    results = [
        dict(steps=steps, boxes=boxes, runs=[measure(runner, steps, boxes, seed) for seed in args.seeds])
        for steps, boxes in args.settings
    ]
    print(table(results))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
