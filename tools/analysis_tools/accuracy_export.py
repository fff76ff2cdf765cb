"""AP of a detector in torch and of its export, side by side on the config's test set, as a Markdown table.

Example:
    python tools/analysis_tools/accuracy_export.py CONFIG CHECKPOINT EXPORTED --settings 1x300 4x300 8x300

Both sides read the same files and draw the same noise. The exit status is 1 where AP differs by more than 0.001.
"""

import mmdet_diffusion  # noqa: F401  isort: skip  first: it makes the operators of mmcv available
import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.utils import ProgressBar

from diffusiondet_runtime import Detections, ExportError, OnnxDetector
from diffusiondet_runtime.engines import ENGINES
from diffusiondet_runtime.folder import sha256
from mmdet_diffusion.config_zoo import with_config_path
from mmdet_diffusion.detectors.several_predictions import at_settings, features_once
from mmdet_diffusion.evaluation.average_precision import match_detections
from mmdet_diffusion.evaluation.detection_records import ImageDetections
from mmdet_diffusion.evaluation.dial_settings import DialSetting, dial_setting
from mmdet_diffusion.evaluation.ground_truth import coco_detections, ground_truth, num_objects
from mmdet_diffusion.input_checks import refuse_missing_checkpoint, refuse_missing_data
from mmdet_diffusion.prediction import Predictor

BAR = 0.001
NO_TIME = (0.0, 0.0)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='path, or name of one of this package')
    parser.add_argument('checkpoint')
    parser.add_argument('exported', help='folder of mmdet-diffusion export, of this config and checkpoint')
    parser.add_argument('--settings', nargs='+', type=dial_setting, metavar='STEPSxBOXES',
                        help='default: 1, 4 and 8 steps of as many boxes as exported')
    parser.add_argument('--num-images', type=int, help='of the test set, from its start; default: all')
    parser.add_argument('--engine', default='onnxruntime', choices=ENGINES)
    parser.add_argument('--threads', type=int, help="default: the engine's choice")
    args = parser.parse_args(argv)
    if args.num_images is not None and args.num_images < 1:
        parser.error(f'--num-images must be at least 1, got {args.num_images}')
    return args


def detections(args: argparse.Namespace, config: Config, exported: OnnxDetector, paths: list[Path]
               ) -> Iterator[tuple[DialSetting, ImageDetections, ImageDetections]]:
    """Each picture at each setting: what torch finds, and what the export finds."""
    predictor = Predictor(config, args.checkpoint, device='cpu', score_thr=0.0, dial={})
    head = predictor.model.bbox_head
    seed = head.sampling_settings().seed
    progress = ProgressBar(len(paths))
    for path in paths:
        _, sample = predictor.read(path)
        pixels = exported.read(path)
        with features_once(predictor.model):
            for one in args.settings:
                with at_settings(head, one.values()):
                    found = predictor.detect([sample])[0].pred_instances
                by_torch = Detections(found.bboxes.numpy(), found.scores.numpy(), found.labels.numpy())
                by_export = exported.detect(pixels, steps=one.steps, boxes=one.boxes, seed=seed, name=path.name)
                yield one, ImageDetections(*by_torch, NO_TIME), ImageDetections(*by_export, NO_TIME)
        progress.update()


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    args = parse_args(argv)
    config = Config.fromfile(*with_config_path([args.config]))
    refuse_missing_data(config, ('test_dataloader', 'test_evaluator'))
    refuse_missing_checkpoint(args.checkpoint)
    try:
        exported = OnnxDetector(args.exported, engine=args.engine, num_threads=args.threads)
    except ExportError as error:
        raise SystemExit(str(error)) from error
    if exported.sampler['checkpoint']['sha256'] != sha256(args.checkpoint):
        raise SystemExit(f'{args.exported} was exported from another checkpoint than {args.checkpoint}, from '
                         f'{exported.sampler["checkpoint"]["name"]}')
    if not args.settings:
        args.settings = [DialSetting(steps, exported.sampler['sampling']['boxes']) for steps in (1, 4, 8)]
    init_default_scope(config.get('default_scope', 'mmdet'))
    config.test_dataloader.dataset.indices = args.num_images
    dataset = DATASETS.build(config.test_dataloader.dataset)
    try:
        truth = ground_truth(dataset)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if not num_objects(truth):
        raise SystemExit(f'{dataset.ann_file} has no object in {len(dataset)} images: there is no AP')
    paths = [Path(dataset.get_data_info(place)['img_path']) for place in range(len(dataset))]

    sides = {one: ([], []) for one in args.settings}
    for one, *found in detections(args, config, exported, paths):
        for images, image in zip(sides[one], found, strict=True):
            images.append(image)
    print(f'\n{len(paths)} images, {args.engine}\n\n| setting | AP, torch | AP, exported | difference |')
    print('| --- | ---: | ---: | ---: |')
    holds = True
    for one, both in sides.items():
        in_torch, in_export = (match_detections(truth, coco_detections(images)).ap() for images in both)
        difference = in_export - in_torch
        holds &= abs(difference) <= BAR
        print(f'| {one.label} | {in_torch:.4f} | {in_export:.4f} | {difference:+.4f} |')
    if not holds:
        print(f'AP differs by more than {BAR}', file=sys.stderr)
    return 0 if holds else 1


if __name__ == '__main__':
    sys.exit(main())
