"""A config for a data set of one's own: what its annotation files say, and the text that follows from it."""

import math
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmdet_diffusion_cli import light_module

annotation_faults = light_module('annotation_faults')  # importing the package takes seconds
object_sizes = light_module('object_sizes')

BASE = 'diffusiondet_efficientnet-lite0_fpn_1xb4-0.5k_bccd'
WANTED_PIXELS = 16  # of the smallest objects but one in twenty, as the network sees them
SMALLEST_INPUT, LARGEST_INPUT = 320, 1333  # longer side
TRAINED_BOXES, MOST_BOXES = 100, 500
TEMPLATE = """# {summary}
# What is particular to the data is here; the files below have the model and all that helps while little has been seen
# (docs/custom_dataset.md). The environment variable MAX_ITERS makes the training longer than 500 iterations.
_base_ = ['diffusiondet/{base}.py']

metainfo = dict(classes={classes})
train_file = {train_file!r}
val_file = {val_file!r}
train_images = {train_images!r}
val_images = {val_images!r}
size = {size}  # pixels of the longer side: {why_size}

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(size, size), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(size, size), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(dataset=dict(
    data_root='', metainfo=metainfo, ann_file=train_file, data_prefix=dict(img=train_images), pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(
    data_root='', metainfo=metainfo, ann_file=val_file, data_prefix=dict(img=val_images), pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=val_file)
test_evaluator = val_evaluator
train_cfg = dict(val_interval=250)
default_hooks = dict(checkpoint=dict(interval=250, max_keep_ckpts=1))

model = dict(
    bbox_head=dict(
        num_classes={num_classes},
        num_proposals={boxes},  # in training: the fullest image has {fullest} objects
        # Sizes of the {num_objects} objects; part of the model, so that its checkpoints want these figures.
        box_sampler=dict(coder=dict(log_scale={log_scale}, log_aspect={log_aspect}))),
    test_cfg=dict(num_proposals={test_boxes}))  # free to change at any time, with the steps
"""


class DataSet(NamedTuple):
    """Two annotation files in COCO's form, read and checked.

    Attributes:
        train (dict): content of the training file.
        val (dict): of the validation file.
        classes (tuple[str, ...]): that have objects to learn from, in the order of the files.
        left_out (tuple[str, ...]): categories without any.
    """

    train: dict
    val: dict
    classes: tuple[str, ...]
    left_out: tuple[str, ...]


def read_file(path: Path, images: Path) -> dict:
    """The content of an annotation file whose pictures are there.

    Raises:
        ValueError: names the file and the first thing that is wrong.
    """
    content = object_sizes.read_annotations(path)
    fault = annotation_faults.first_fault(content) or annotation_faults.first_missing_key(content)
    if fault is None:
        fault = _first_wrong_reference(content) or _first_missing_picture(content, images)
    if fault is not None:
        raise ValueError(f'{path}: {fault}')
    return content


def _first_wrong_reference(content: dict) -> str | None:
    known = {key: {entry['id'] for entry in content[section]} for key, section in (('image_id', 'images'),
                                                                                  ('category_id', 'categories'))}
    for index, annotation in enumerate(content['annotations']):
        for key, ids in known.items():
            if annotation[key] not in ids:
                return f'annotations[{index}] has the {key} {annotation[key]!r}, which the file does not list'
    twice = [name for name, number in Counter(one['name'] for one in content['categories']).items() if number > 1]
    return f'two categories are called {twice[0]!r}' if twice else None


def _first_missing_picture(content: dict, images: Path) -> str | None:
    missing = [one['file_name'] for one in content['images'] if not (images / one.get('file_name', '')).is_file()]
    if not missing:
        return None
    return f'{len(missing)} of {len(content["images"])} pictures are not in {images}, such as {missing[0]}'


def split(content: dict, share: float) -> tuple[dict, dict]:
    """One annotation file as two, its images drawn at random, the same ones each time.

    Args:
        content (dict): checked by :func:`read_file`.
        share (float): of the images that are to validate, at least one on each side.

    Raises:
        ValueError: if there are fewer than two images.
    """
    images = sorted(content['images'], key=lambda image: str(image['file_name']))
    if len(images) < 2:
        raise ValueError('one image cannot be split into training and validation')
    random.Random(0).shuffle(images)
    number = min(max(round(share * len(images)), 1), len(images) - 1)

    def part(images: list[dict]) -> dict:
        ids = {image['id'] for image in images}
        kept = [one for one in content['annotations'] if one['image_id'] in ids]
        return dict(content, images=images, annotations=kept)

    return part(images[number:]), part(images[:number])


def data_set(train: dict, val: dict) -> DataSet:
    """What both files have in common.

    Raises:
        ValueError: if the training file has no objects, or the validation file lacks classes or has another order.
    """
    used = {one['category_id'] for one in train['annotations']}
    classes = tuple(one['name'] for one in train['categories'] if one['id'] in used)
    if not classes:
        raise ValueError('the training file has no objects')
    in_val = tuple(one['name'] for one in val['categories'] if one['name'] in classes)
    if in_val != classes:
        raise ValueError(f'the training file lists the classes as {classes}, the validation file as {in_val}; both '
                         'need the same ones in the same order')
    left_out = tuple(one['name'] for one in train['categories'] if one['id'] not in used)
    return DataSet(train, val, classes, left_out)


def input_size(content: dict) -> tuple[int, str]:
    """Pixels of the longer side, and why: large enough for the small objects, no larger than the pictures."""
    sides = {image['id']: max(image['width'], image['height']) for image in content['images']}
    shares = sorted(math.sqrt(width * height) / sides[one['image_id']] for one in content['annotations']
                    for width, height in [one['bbox'][2:]] if width > 0 and height > 0)
    share = shares[len(shares) // 20]
    pictures = statistics.median(sides.values())
    size = 32 * math.ceil(min(max(WANTED_PIXELS / share, SMALLEST_INPUT), LARGEST_INPUT, pictures) / 32)
    return size, f'19 of 20 objects are {share * size:.0f} or more then; most pictures have {pictures:.0f}'


def num_boxes(content: dict) -> tuple[int, int]:
    """Boxes in training, three times the objects of the fullest image, and those objects."""
    fullest = max(Counter(one['image_id'] for one in content['annotations']).values())
    return min(max(50 * math.ceil(3 * fullest / 50), TRAINED_BOXES), MOST_BOXES), fullest


def config_text(data: DataSet, files: Sequence[Path], images: Sequence[Path]) -> str:
    """The config.

    Args:
        data (DataSet): that was measured.
        files (Sequence[Path]): to train on and to validate, as the config names them.
        images (Sequence[Path]): folders of the pictures of each.

    Raises:
        ValueError: if the objects are too few to measure.
    """
    sizes = object_sizes.measure_sizes(data.train)
    size, why_size = input_size(data.train)
    boxes, fullest = num_boxes(data.train)
    summary = (f'{len(data.train["images"])} pictures to train on, {len(data.val["images"])} to validate, '
               f'{len(data.classes)} class{"es" * (len(data.classes) > 1)}.')
    return TEMPLATE.format(
        summary=summary, base=BASE, classes=_written(data.classes), train_file=str(files[0]), val_file=str(files[1]),
        train_images=f'{images[0]}/', val_images=f'{images[1]}/', size=size, why_size=why_size,
        num_classes=len(data.classes), boxes=boxes, fullest=fullest, num_objects=sizes.num_objects,
        log_scale=sizes.log_scale, log_aspect=sizes.log_aspect, test_boxes=3 * boxes)


def _written(classes: tuple[str, ...]) -> str:
    """A tuple in Python, in lines of 120 characters at most."""
    lines, line = [], ''
    for name in map(repr, classes):
        if line and len(line) + len(name) > 100:
            lines.append(line)
            line = ''
        line += f'{name}, '
    lines.append(line)
    if len(lines) == 1 and len(classes) > 1:
        return f'({line.rstrip(", ")})'
    return '(\n    ' + '\n    '.join(one.rstrip() for one in lines) + '\n)' if len(lines) > 1 else f'({line.rstrip()})'
