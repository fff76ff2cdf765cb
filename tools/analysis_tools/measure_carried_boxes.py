"""What starting from the last frame's detections is worth: AP over made clips with and without, as a Markdown table.

Example:
    python tools/analysis_tools/measure_carried_boxes.py diffusiondet_r18_fpn_1xb4-4k_shapes CHECKPOINT --settings 1x16

A clip is a window that moves over a larger scene of shapes, so it is for models of that set (mmdet-diffusion shapes).
Differences come with an interval by a bootstrap over clips.
"""

import mmdet_diffusion  # noqa: F401  isort: skip  first: it makes the operators of mmcv available
import argparse
import contextlib
import io
import sys
from pathlib import Path

import numpy as np
from mmengine.config import Config
from pycocotools.coco import COCO

from mmdet_diffusion.config_zoo import with_config_path
from mmdet_diffusion.detectors.several_predictions import at_settings
from mmdet_diffusion.evaluation.average_precision import match_detections
from mmdet_diffusion.evaluation.bootstrap import Contestant, difference
from mmdet_diffusion.evaluation.dial_settings import DialSetting, dial_setting
from mmdet_diffusion.input_checks import refuse_missing_checkpoint
from mmdet_diffusion.prediction import Predictor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'dataset_converters'))
from make_shapes import make_image  # noqa: E402

SCENE, WINDOW = 224, 128  # pixels of the longer side, and of a frame
LEAST_SIDE, LEAST_SHARE = 4, 0.5  # of an object that counts, within the frame
CARRIED_SCORE = 0.3


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='path, or name of one of this package')
    parser.add_argument('checkpoint')
    parser.add_argument('--settings', nargs='+', type=dial_setting, metavar='STEPSxBOXES',
                        default=[DialSetting(1, boxes) for boxes in (16, 32, 64, 300)])
    parser.add_argument('--clips', type=int, default=12)
    parser.add_argument('--frames', type=int, default=16, help='of a clip')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    return parser.parse_args(argv)


def made_clip(number: int, frames: int) -> list[tuple[np.ndarray, list[dict]]]:
    """Pixels, uint8 RGB, and objects of each frame; the window goes to and fro, by a few pixels a frame."""
    scene, objects = make_image(99, 'val', number, SCENE)
    height, width = scene.shape[:2]
    side = min(WINDOW, height, width)
    rng = np.random.default_rng(number)
    phases, speeds = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.6, 1.4, 2) / 6
    clip = []
    for place in range(frames):
        x, y = (int(room * (0.5 + 0.5 * np.sin(phase + speed * place)))
                for room, phase, speed in zip((width - side, height - side), phases, speeds, strict=True))
        seen = [inside(one, x, y, side) for one in objects]
        clip.append((np.ascontiguousarray(scene[y:y + side, x:x + side]), [one for one in seen if one]))
    return clip


def inside(annotation: dict, x: int, y: int, side: int) -> dict | None:
    """An object in a window, cut at its edges; None where too little of it is there."""
    left, top, width, height = annotation['bbox']
    corners = np.clip([left - x, top - y, left + width - x, top + height - y], 0, side).tolist()
    sides = corners[2] - corners[0], corners[3] - corners[1]
    if min(sides) <= LEAST_SIDE or sides[0] * sides[1] <= LEAST_SHARE * width * height:
        return None
    return dict(category_id=annotation['category_id'], bbox=[*corners[:2], *sides], area=sides[0] * sides[1], iscrowd=0)


def truth_of(clips: list[list[tuple[np.ndarray, list[dict]]]], classes: list[str]) -> COCO:
    """Objects of all frames; the number of an image counts through all clips, from 1."""
    frames = [frame for clip in clips for frame in clip]
    annotations = [dict(one, image_id=place) for place, (_, objects) in enumerate(frames, 1) for one in objects]
    truth = COCO()
    truth.dataset = dict(
        images=[dict(id=place, width=pixels.shape[1], height=pixels.shape[0])
                for place, (pixels, _) in enumerate(frames, 1)],
        annotations=[dict(one, id=number) for number, one in enumerate(annotations, 1)],
        categories=[dict(id=label + 1, name=name) for label, name in enumerate(classes)])
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def detections(predictor: Predictor, clips: list, seed: int, carries: bool) -> list[dict]:
    """Of all frames, in COCO's form; every frame draws its own noise."""
    found, number = [], 0
    for place, clip in enumerate(clips):
        before = None
        for frame, (pixels, _) in enumerate(clip):
            sample = predictor.sample(pixels, f'{seed}:{place}:{frame}', before)
            one, = predictor.detect([sample])
            number += 1
            instances = one.pred_instances
            found += [dict(image_id=number, category_id=label + 1, score=score,
                           bbox=[box[0], box[1], box[2] - box[0], box[3] - box[1]])
                      for box, score, label in zip(instances.bboxes.tolist(), instances.scores.tolist(),
                                                   instances.labels.tolist(), strict=True)]
            if carries:
                one.pred_instances, before = instances[instances.scores > CARRIED_SCORE], one
    return found


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    args = parse_args(argv)
    refuse_missing_checkpoint(args.checkpoint)
    config = Config.fromfile(*with_config_path([args.config]))
    predictor = Predictor(config, args.checkpoint, device='cpu', score_thr=0.0, dial={})
    clips = [made_clip(number, args.frames) for number in range(args.clips)]
    truth = truth_of(clips, predictor.classes)
    print(f'{args.clips} clips of {args.frames} frames, {len(truth.anns)} objects, {len(args.seeds)} seeds\n')
    print('| setting | AP, noise alone | AP, carried boxes | difference, 95 % |\n| --- | ---: | ---: | ---: |')
    for setting in args.settings:
        with at_settings(predictor.model.bbox_head, setting.values()):
            sides = [Contestant(name, [[match_detections(truth, detections(predictor, clips, seed, carries))
                                        for seed in args.seeds]])
                     for name, carries in (('carried', True), ('noise', False))]
        carried, plain = (np.mean([run.ap() for run in side.trainings[0]]) for side in sides)
        found = difference(*sides, together=args.frames)
        print(f'| {setting.label} | {plain:.3f} | {carried:.3f} | {found.value:+.3f} ({found.low:+.3f} to '
              f'{found.high:+.3f}) |', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
