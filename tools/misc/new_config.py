"""A config for a data set of one's own: what is chosen for it, and the text."""

import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import own_annotations

object_sizes = own_annotations.object_sizes

BASE = 'diffusiondet_efficientnet-lite0_fpn_1xb4-0.5k_bccd'
WANTED_PIXELS, TOO_FEW_PIXELS = 16, 10  # of the smallest objects but one in twenty, as the network sees them
SMALLEST_INPUT, LARGEST_INPUT = 320, 1344  # longer side
TRAINED_BOXES, MOST_BOXES = 100, 500
COUNTED = 100  # detections of a class in an image, in COCO's AP
LONG = 1000  # iterations from which augmentation pays: of 500 and 1500 that were tried, docs/custom_dataset.md
FLIPS = dict(
    horizontal='prob=0.5',
    all="prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']")
TEMPLATE = """# {summary}
# What is particular to the data is here; the files below have the model and all that helps while little has been seen
# (docs/custom_dataset.md). The environment variable MAX_ITERS makes the training longer than 500 iterations.
_base_ = ['diffusiondet/{base}.py']

metainfo = dict(classes={classes})
train_file = "{{{{ fileDirname }}}}/{stem}_train.json"  # beside this file
val_file = "{{{{ fileDirname }}}}/{stem}_val.json"
train_images = {train_images}
val_images = {val_images}
size = {size}  # pixels of the longer side: 19 of 20 objects are {smallest:.0f} or more then

# A long training needs pictures that vary in size and colour, too; a short one is slowed by it.
length = int('{{{{$MAX_ITERS:500}}}}')
is_long = length >= {long}
sizes = [round(0.9 * size), size, round(1.1 * size)] if is_long else [size]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomChoiceResize', scales=[(side, side) for side in sizes], keep_ratio=True),
    dict(type='RandomFlip', {flips}),
    *([dict(type='PhotoMetricDistortion', hue_delta=9)] if is_long else []),
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
# Ten times in a long training, twice in the shortest. The last checkpoint is kept, and the best one.
train_cfg = dict(val_interval=max(250, length // 10))
default_hooks = dict(checkpoint=dict(interval=max(250, length // 10), max_keep_ckpts=1, save_best='coco/bbox_mAP'))

model = dict(
    bbox_head=dict(
        num_classes={num_classes},
        num_proposals={boxes},  # in training: the fullest image has {fullest} objects
        # Sizes of the {num_objects} objects; part of the model, so that its checkpoints want these figures.
        box_sampler=dict(coder=dict(log_scale={log_scale}, log_aspect={log_aspect}))),
    test_cfg=dict(num_proposals={test_boxes}, max_per_img={test_boxes}))  # free to change at any time, with the steps
"""


class Choice(NamedTuple):
    """What is chosen for a data set, and what for.

    Attributes:
        size (int): pixels of the longer side of the network's input.
        smallest (float): pixels of the objects there that one in twenty goes below.
        boxes (int): in training.
        fullest (int): objects of the fullest image.
    """

    size: int
    smallest: float
    boxes: int
    fullest: int


def choose(data: own_annotations.DataSet) -> Choice:
    """Input and boxes for the objects to train on."""
    return Choice(*input_size(data.train), *num_boxes(data.train))


def input_size(content: dict) -> tuple[int, float]:
    """Pixels of the longer side, and those of the objects that one in twenty goes below.

    Large enough for the small objects, no larger than the middle one of the pictures that hold objects.

    Args:
        content (dict): training file of a :class:`own_annotations.DataSet`.
    """
    sides = {image['id']: max(image['width'], image['height']) for image in content['images']}
    objects = [one for one in content['annotations'] if not one['iscrowd']]
    shares = sorted(math.sqrt(one['bbox'][2] * one['bbox'][3]) / sides[one['image_id']] for one in objects)
    pictures = sorted(sides[number] for number in {one['image_id'] for one in objects})
    share, largest = shares[len(shares) // 20], pictures[len(pictures) // 2]
    size = 32 * math.ceil(min(max(WANTED_PIXELS / share, SMALLEST_INPUT), LARGEST_INPUT, largest) / 32)
    return size, share * size


def num_boxes(content: dict) -> tuple[int, int]:
    """Boxes in training, three times the objects of the fullest image, and those objects."""
    fullest = max(Counter(one['image_id'] for one in content['annotations'] if not one['iscrowd']).values())
    return min(max(50 * math.ceil(3 * fullest / 50), TRAINED_BOXES), MOST_BOXES), fullest


def config_text(data: own_annotations.DataSet, chosen: Choice, stem: str, train_images: Path, val_images: Path,
                flips: str) -> str:
    """The config.

    Args:
        data (DataSet): that is measured.
        chosen (Choice): for it.
        stem (str): name of the config, with which those of its annotation files begin.
        train_images (Path): folder of the pictures to train on.
        val_images (Path): of those to validate.
        flips (str): key of :data:`FLIPS`.

    Raises:
        ValueError: if there is a single object.
    """
    sizes = object_sizes.measure_sizes(data.train)
    summary = (f'{len(data.train["images"])} pictures to train on, {len(data.val["images"])} to validate, '
               f'{len(data.classes)} class{"es" * (len(data.classes) > 1)}.')
    return TEMPLATE.format(
        summary=summary, base=BASE, classes=_written_names(data.classes), stem=stem,
        train_images=_written(f'{train_images}/'), val_images=_written(f'{val_images}/'), long=LONG, flips=FLIPS[flips],
        num_classes=len(data.classes), test_boxes=3 * chosen.boxes, **chosen._asdict(), **sizes._asdict())


def warnings(data: own_annotations.DataSet, chosen: Choice) -> list[str]:
    """What the choice cannot make good."""
    size, smallest, boxes, fullest = chosen
    of_a_class = Counter((one['image_id'], one['category_id']) for one in data.val['annotations']
                         if not one['iscrowd']).most_common(1)[0][1]
    found = []
    if smallest < TOO_FEW_PIXELS:
        cure = 'cut the pictures into tiles' if size == LARGEST_INPUT else 'a larger size in the config enlarges them'
        found.append(f'WARNING: one in twenty objects has less than {smallest:.0f} pixels at the input of {size}: '
                     f'{cure}')
    if fullest > boxes:
        found.append(f'WARNING: an image has {fullest} objects, more than the {boxes} boxes in training: cut the '
                     'pictures into tiles')
    if of_a_class > COUNTED:
        found.append(f"WARNING: an image has {of_a_class} objects of a class, and COCO's AP counts {COUNTED} "
                     'detections of a class in an image, so that it stays low')
    if size > SMALLEST_INPUT:
        found.append(f'an input of {size} pixels: about {(size / SMALLEST_INPUT)**2:.0f} times the time of '
                     f'{SMALLEST_INPUT}')
    return found


def _written(text: str) -> str:
    """Text in Python in which mmengine substitutes nothing."""
    return repr(text).replace('{{', '{\\x7b')


def _written_names(names: tuple[str, ...]) -> str:
    """A tuple in Python, in lines of 120 characters at most but for longer names."""
    lines, line = [], ''
    for name in map(_written, names):
        if line and len(line) + len(name) > 100:
            lines.append(line)
            line = ''
        line += f'{name}, '
    lines.append(line)
    if len(lines) > 1:
        return '(\n    ' + '\n    '.join(one.rstrip() for one in lines) + '\n)'
    return f'({line.rstrip(", ") if len(names) > 1 else line.rstrip()})'
