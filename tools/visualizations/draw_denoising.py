"""Two pictures of a trained model: detections beside ground truth, and the boxes of one image from noise to objects.

Example:
    python tools/visualizations/draw_denoising.py CONFIG CHECKPOINT --out-dir pictures --images 6 --steps 4

Images are the first of the config's test set that hold at least `--min-objects` objects.
"""

import mmdet_diffusion  # noqa: F401  isort: skip  first: it makes the operators of mmcv available
import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from mmdet.apis import init_detector
from mmdet.registry import DATASETS
from mmdet.structures.bbox import get_box_tensor
from mmengine.config import Config, DictAction
from mmengine.dataset import pseudo_collate
from PIL import Image, ImageDraw

from mmdet_diffusion.input_checks import refuse_missing_data, refuse_missing_device
from mmdet_diffusion.launch import with_config_path
from mmdet_diffusion.visualization import draw_story, follow_boxes, on_picture

COLOURS = ((230, 60, 60), (60, 120, 240), (40, 170, 80), (240, 160, 30), (170, 80, 220), (20, 180, 190))
MARGIN = 4  # white pixels between panels
CAPTION = 14  # pixels above a panel


def draw_boxes(image: Image.Image, bboxes: torch.Tensor, labels: torch.Tensor, scale: float) -> Image.Image:
    """A copy of the picture, enlarged, with boxes (xyxy in its pixels) in the colours of their classes."""
    picture = image.resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    for box, label in zip((bboxes * scale).tolist(), labels.tolist(), strict=True):
        left, top, right, bottom = box
        if right > left and bottom > top:
            draw.rectangle(box, outline=COLOURS[label % len(COLOURS)], width=2)
    return picture


def grid(rows: list[list[tuple[str, Image.Image]]]) -> Image.Image:
    """Captioned pictures in rows on white."""
    widths = [max(row[column][1].width for row in rows) for column in range(len(rows[0]))]
    heights = [max(picture.height for _, picture in row) + CAPTION for row in rows]
    canvas = Image.new('RGB', (sum(widths) + MARGIN * (len(widths) + 1), sum(heights) + MARGIN * (len(heights) + 1)),
                       'white')
    draw, y = ImageDraw.Draw(canvas), MARGIN
    for row, height in zip(rows, heights, strict=True):
        x = MARGIN
        for (caption, picture), width in zip(row, widths, strict=True):
            draw.text((x, y), caption, fill='black')
            canvas.paste(picture, (x, y + CAPTION))
            x += width + MARGIN
        y += height + MARGIN
    return canvas


class Viewer:
    """A trained detector and the samples that it looks at.

    Args:
        config (Config): of the model and its test set.
        checkpoint (str): file.
        device (str): such as ``cpu`` or ``cuda:0``.
        score_thr (float): detections below it are not drawn.
        panel (int): longer side of a panel in pixels.
    """

    def __init__(self, config: Config, checkpoint: str, device: str, score_thr: float, panel: int) -> None:
        self.model = init_detector(config, checkpoint, device=device)
        self.head = self.model.bbox_head
        self.dataset = DATASETS.build(config.test_dataloader.dataset)
        self.score_thr, self.panel = score_thr, panel

    def samples(self, number: int, min_objects: int) -> list[dict]:
        """The first samples of the data set with enough objects."""
        indices = (index for index in range(len(self.dataset))
                   if len(self.dataset.get_data_info(index)['instances']) >= min_objects)
        return [self.dataset[index] for index, _ in zip(indices, range(number), strict=False)]

    def picture(self, sample: dict) -> tuple[Image.Image, float]:
        """The network input as a picture and how much to enlarge it."""
        array = sample['inputs'].permute(1, 2, 0).numpy()[..., ::-1]
        image = Image.fromarray(np.ascontiguousarray(array))
        return image, self.panel / max(image.size)

    def ground_truth(self, sample: dict) -> Image.Image:
        """The annotated boxes, in the frame of the network input."""
        image, scale = self.picture(sample)
        instances, meta = sample['data_samples'].gt_instances, sample['data_samples'].metainfo
        bboxes = get_box_tensor(instances.bboxes) * torch.tensor(meta['scale_factor']).repeat(2)
        return draw_boxes(image, bboxes, instances.labels, scale)

    @torch.no_grad()
    def detections(self, sample: dict) -> Image.Image:
        """The detections above the threshold."""
        image, scale = self.picture(sample)
        data = self.model.data_preprocessor(pseudo_collate([sample]))
        found = self.head.predict(self.model.extract_feat(data['inputs']), data['data_samples'], rescale=False)[0]
        found = found[found.scores > self.score_thr].cpu()
        return draw_boxes(image, found.bboxes, found.labels, scale)

    def story(self, sample: dict) -> Image.Image:
        """The boxes of a picture from noise to objects, a row a step."""
        data = self.model.data_preprocessor(pseudo_collate([sample]))
        moments, = follow_boxes(self.model, data)
        picture, moments = on_picture(moments, data['data_samples'][0], self.picture(sample)[0], self.panel)
        return draw_story(picture, moments, self.score_thr)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='path, or name of one of this package')
    parser.add_argument('checkpoint')
    parser.add_argument('--out-dir', type=Path, required=True)
    parser.add_argument('--images', type=int, default=6, help='columns of the first picture')
    parser.add_argument('--steps', type=int, default=4, help='sampling steps')
    parser.add_argument('--min-objects', type=int, default=4)
    parser.add_argument('--score-thr', type=float, default=0.4)
    parser.add_argument('--panel', type=int, default=224, help='pixels of the longer side of a panel')
    parser.add_argument('--device', default='cuda:0' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args()
    if not Path(args.checkpoint).is_file():
        parser.error(f'there is no checkpoint {args.checkpoint}')
    if args.images < 1:
        parser.error(f'--images must be at least 1, got {args.images}')
    config = Config.fromfile(*with_config_path([args.config]))
    config.merge_from_dict(args.cfg_options or {})
    refuse_missing_device(args.device)
    refuse_missing_data(config, ('test_dataloader',))
    config.model.test_cfg.update(sampling_timesteps=args.steps, seed=0)
    viewer = Viewer(config, args.checkpoint, args.device, args.score_thr, args.panel)
    samples = viewer.samples(args.images, args.min_objects)
    if not samples:
        parser.error(f'no image of the test set holds {args.min_objects} objects; lower --min-objects')
    args.out_dir.mkdir(parents=True, exist_ok=True)
    truth = [('ground truth', viewer.ground_truth(sample)) for sample in samples]
    found = [('detections', viewer.detections(sample)) for sample in samples]
    grid([truth, found]).save(args.out_dir / 'detections.png')
    viewer.story(samples[0]).save(args.out_dir / 'denoising.png')
    print(f'{args.out_dir / "detections.png"}\n{args.out_dir / "denoising.png"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
