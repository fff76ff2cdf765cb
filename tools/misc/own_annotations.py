"""Annotation files in COCO's form as programs export them: read, checked, split, and brought to what MMDetection reads.

The programs differ in what they leave out (area, iscrowd), in their ids (text, numbers from 0) and in categories
without an object; MMDetection drops boxes without a word, and pycocotools ends a training at its first validation.
"""

import math
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from mmdet_diffusion_cli import light_module

annotation_faults = light_module('annotation_faults')  # importing the package takes seconds
object_sizes = light_module('object_sizes')

OPENED = 50  # pictures whose size is compared with the file's
REACHING_OUT = 0.1  # share of the boxes; of more the numbers are something else
SHOWN = 12  # names in a message
FEW = 50  # objects


class DataSet(NamedTuple):
    """Two annotation files as MMDetection reads them; every object can be learnt from, or is a crowd.

    Attributes:
        train (dict): content of the training file.
        val (dict): of the validation file.
        classes (tuple[str, ...]): that have objects to learn from, in the order of the training file.
        notes (tuple[str, ...]): what the user should know of them.
    """

    train: dict
    val: dict
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def read_file(path: Path, images: Path) -> dict:
    """The content of an annotation file whose pictures are there, with areas, crowds and ids filled in.

    Raises:
        ValueError: names the file and the first thing that is wrong.
    """
    content = object_sizes.read_annotations(path)
    for number, one in enumerate(content['annotations'] if _are_dicts(content['annotations']) else [], 1):
        one['id'] = number  # of no use but to pycocotools, which takes no text and loses the object 0
        one['iscrowd'] = int(str(one.get('iscrowd')) in ('1', '1.0', 'True', 'true'))
        if not one.get('area') and _is_box(one.get('bbox')):
            one['area'] = one['bbox'][2] * one['bbox'][3]
    fault = annotation_faults.first_fault(content) or annotation_faults.first_missing_key(content)
    for check in (_first_nameless_image, _first_wrong_reference, _boxes_out_of_pictures):
        fault = fault or check(content)
    fault = fault or _first_missing_picture(content, images) or _first_wrong_size(content, images)
    if fault is not None:
        raise ValueError(f'{path}: {fault}')
    return content


def _are_dicts(values: list) -> bool:
    return all(isinstance(value, dict) for value in values)


def _is_box(bbox: object) -> bool:
    return isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(side, (int, float)) for side in bbox)


def _first_nameless_image(content: dict) -> str | None:
    return next((f"images[{index}] has no 'file_name'" for index, image in enumerate(content['images'])
                 if 'file_name' not in image), None)


def _first_wrong_reference(content: dict) -> str | None:
    known = {key: {entry['id'] for entry in content[section]} for key, section in (('image_id', 'images'),
                                                                                  ('category_id', 'categories'))}
    return next((f'annotations[{index}] has the {key} {annotation[key]!r}, which the file does not list'
                 for index, annotation in enumerate(content['annotations']) for key, ids in known.items()
                 if annotation[key] not in ids), None)


def _boxes_out_of_pictures(content: dict) -> str | None:
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    out = [one for one in content['annotations'] if any(
        start + length > side + 1 for start, length, side in zip(one['bbox'][:2], one['bbox'][2:],
                                                                  sizes[one['image_id']], strict=True))]
    if len(out) <= REACHING_OUT * len(content['annotations']):
        return None
    width, height = sizes[out[0]['image_id']]
    return (f'{len(out)} of {len(content["annotations"])} boxes reach out of their pictures, such as {out[0]["bbox"]} '
            f'of {width} x {height} pixels; a bbox is x, y, width, height')


def _first_missing_picture(content: dict, images: Path) -> str | None:
    if not os.path.isdir(images):
        return f'there is no folder {images}'
    names = [image['file_name'] for image in content['images']]
    missing = [name for name in names if not os.path.isfile(images / name)]  # False, too, where the name is too long
    if not missing:
        return None
    bare = PureWindowsPath(missing[0]).name
    hint = ''
    if bare != missing[0] and os.path.isfile(images / bare):
        hint = '; it is there without its folder: ' + (
            'the names have backslashes, write / for them' if '\\' in missing[0] else
            'give --images the folder that the names start from')
    return f'{len(missing)} of {len(names)} pictures are not in {images}, such as {missing[0][:120]}{hint}'


def _first_wrong_size(content: dict, images: Path) -> str | None:
    """Of some pictures, as they are seen: turned by their EXIF tag, as OpenCV reads them."""
    try:
        from diffusiondet_runtime.pictures import picture_size
    except ImportError:  # NumPy and Pillow come with MMDetection
        return None
    for image in content['images'][::math.ceil(len(content['images']) / OPENED)]:
        try:
            size = picture_size(images / image['file_name'])
        except (OSError, ValueError) as error:
            return f'{image["file_name"]} cannot be read as a picture ({type(error).__name__})'
        if size != (image['width'], image['height']):
            return (f'{image["file_name"]} has {size[0]} x {size[1]} pixels, the file says {image["width"]} x '
                    f'{image["height"]}')
    return None


def is_learnt_from(annotation: dict, image: dict) -> bool:
    """Whether MMDetection trains on a box; the others are left out there without a word."""
    x, y, width, height = annotation['bbox']
    return (not annotation.get('ignore') and not annotation['iscrowd'] and annotation['area'] > 0 and width >= 1
            and height >= 1 and min(x + width, image['width']) > max(x, 0)
            and min(y + height, image['height']) > max(y, 0))


def split(content: dict, share: float) -> tuple[dict, dict]:
    """One annotation file as two, by pictures drawn at random, the same ones each time.

    Copies of one picture (of one name, or as Roboflow names them) stay together, and the last picture of a class is
    trained on.

    Args:
        content (dict): of :func:`read_file`.
        share (float): of the pictures that are to validate, of those with and those without objects.

    Raises:
        ValueError: if fewer than two different pictures have objects.
    """
    classes = defaultdict(set)
    by_id = {image['id']: image for image in content['images']}
    for one in content['annotations']:
        if is_learnt_from(one, by_id[one['image_id']]):
            classes[_source(by_id[one['image_id']])].add(one['category_id'])
    sources = sorted({_source(image) for image in content['images']})
    random.Random(0).shuffle(sources)
    without_objects = [source for source in sources if source not in classes]
    left = Counter(label for labels in classes.values() for label in labels)
    wanted, val = max(round(share * len(classes)), 1), set()
    for source in sources:
        if source in classes and len(val) < wanted and all(left[label] > 1 for label in classes[source]):
            val.add(source)
            left.subtract(classes[source])
    if not val:
        raise ValueError('too few pictures with objects to keep some of each class to validate; name a file with --val')
    val.update(without_objects[:round(share * len(without_objects))])

    def part(kept: Callable[[dict], bool]) -> dict:
        images = [image for image in content['images'] if kept(image)]
        ids = {image['id'] for image in images}
        return dict(content, images=images,
                    annotations=[one for one in content['annotations'] if one['image_id'] in ids])

    return part(lambda image: _source(image) not in val), part(lambda image: _source(image) in val)


def _source(image: dict) -> str:
    """What copies of a picture have in common."""
    return image['file_name'].split('.rf.')[0]


def data_set(train: dict, val: dict) -> DataSet:
    """Both files with the classes that can be learnt, numbered alike.

    Raises:
        ValueError: if one has no object to learn from, or two classes have one name.
    """
    usable = [_usable(content) for content in (train, val)]
    learnt, in_val = ({one['category_id'] for one in boxes if not one['iscrowd']} for boxes in usable)
    names = [one['name'] for one in train['categories'] if one['id'] in learnt]
    if not names:
        boxes = train['annotations']
        example = f', such as {boxes[0]["bbox"]}; a bbox is x, y, width, height in pixels' if boxes else ''
        raise ValueError(f'none of the {len(boxes)} boxes to train on can be learnt from{example}')
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise ValueError(f'two categories with objects are called {twice[0]!r}')
    validated = [one['name'] for one in val['categories'] if one['id'] in in_val]
    if not set(names) & set(validated):
        raise ValueError(f'there is no object of {shown(names)} to validate on')
    notes = {
        'boxes left out, without an area, outside of their picture or to be ignored':
            len(train['annotations']) + len(val['annotations']) - sum(map(len, usable)),
        'categories left out, without an object to learn from':
            [one['name'] for one in train['categories'] if one['name'] not in {*names, *validated}],
        'WARNING: classes to validate that are not trained on, and do not count':
            [name for name in validated if name not in names],
        'WARNING: classes that are trained on without an object to validate':
            [name for name in names if name not in validated],
        'WARNING: few objects to learn from, and their sizes mean little':
            number if (number := sum(not one['iscrowd'] for one in usable[0])) < FEW else 0}
    told = (f'{what}: {shown(value) if isinstance(value, list) else value}' for what, value in notes.items() if value)
    parts = (_numbered(content, boxes, names) for content, boxes in zip((train, val), usable, strict=True))
    return DataSet(*parts, tuple(names), tuple(told))


def _usable(content: dict) -> list[dict]:
    """Boxes that are trained on, and crowds."""
    by_id = {image['id']: image for image in content['images']}
    return [one for one in content['annotations'] if one['iscrowd'] or is_learnt_from(one, by_id[one['image_id']])]


def _numbered(content: dict, boxes: list[dict], names: list[str]) -> dict:
    """A file with these classes and boxes, all ids counted from 1."""
    images = {image['id']: dict(image, id=number) for number, image in enumerate(content['images'], 1)}
    with_boxes = {one['category_id'] for one in boxes}
    labels = {one['id']: names.index(one['name']) + 1 for one in content['categories']
              if one['name'] in names and one['id'] in with_boxes}
    kept = [dict(one, image_id=images[one['image_id']]['id'], category_id=labels[one['category_id']])
            for one in boxes if one['category_id'] in labels]
    return dict(images=list(images.values()), annotations=[dict(one, id=number) for number, one in enumerate(kept, 1)],
                categories=[dict(id=number, name=name) for number, name in enumerate(names, 1)])


def overlap(data: DataSet, train_images: Path, val_images: Path) -> list[str]:
    """A warning where pictures are both trained on and validated."""
    both = set.intersection(*({(folder / image['file_name']).resolve() for image in content['images']}
                              for folder, content in ((train_images, data.train), (val_images, data.val))))
    words = 'pictures are both trained on and validated, such as'
    return [f'WARNING: {len(both)} {words} {min(both).name}'] if both else []


def shown(names: Iterable[str]) -> str:
    """The first names and how many there are, in a line that any terminal takes."""
    names = [ascii(name)[1:-1] if not name.isprintable() else name for name in names]
    return ', '.join(names[:SHOWN]) + (f' and {len(names) - SHOWN} more' if len(names) > SHOWN else '')
