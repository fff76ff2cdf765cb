"""Annotation files with one thing changed at random: read as they stand, or refused in one line.

``MUTATIONS=2000 pytest tests/test_mutated_annotations.py tests/test_mutated_checkpoints.py`` for more than a plain run.
"""

import copy
import json
import os
import random

import pytest
from mmdet.datasets import CocoDataset

from mmdet_diffusion.annotation_categories import _read
from mmdet_diffusion.hooks.dataset_check_hook import check_classes
from mmdet_diffusion.input_checks import annotation_file_fault

NUMBER = int(os.environ.get('MUTATIONS', 200))
CLASSES = ('pen', 'cup')
VALUES = [None, True, False, 0, -1, 1, 10**9, 10**400, 0.5, float('nan'), float('inf'), -float('inf'), '', 'pen', '\n',
          '1', [], [1], [[]], {}, dict(id=1), [1, 2, 3, 4], [1, 2, float('nan'), 4],
          '__import__("os").system("touch code_ran")']


def valid_content():
    return dict(
        images=[dict(id=number, file_name=f'{number}.jpg', width=100, height=80) for number in (3, 1, 2)],
        categories=[dict(id=7, name='pen'), dict(id=4, name='cup')],
        annotations=[dict(id=number, image_id=image, category_id=category, bbox=[10, 20.5, 30, 40], area=1200)
                     for number, (image, category) in enumerate([(1, 7), (1, 4), (2, 7), (3, 4)], start=1)])


def places(value, path=()):
    """Every place in nested lists and dicts."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutated_json(random_):
    """Content with one value changed, removed, doubled or renamed."""
    content = copy.deepcopy(valid_content())
    *path, key = random_.choice(list(places(content)))
    owner = content
    for step in path:
        owner = owner[step]
    action = random_.choice(['change', 'change', 'change', 'remove', 'double', 'rename'])
    if action == 'remove':
        del owner[key]
    elif action == 'double' and isinstance(owner, list):
        owner.append(copy.deepcopy(owner[key]))
    elif action == 'rename' and isinstance(owner, dict):
        owner[random_.choice(['id', 'x', '', key.upper()])] = owner.pop(key)
    else:
        owner[key] = copy.deepcopy(random_.choice(VALUES))
    return json.dumps(content).encode()


def mutated_bytes(random_):
    """Valid content with bytes changed, left out or put in."""
    data = bytearray(json.dumps(valid_content()).encode())
    for _ in range(random_.choice([1, 1, 2, 8])):
        place = random_.randrange(len(data))
        action = random_.choice(['digit', 'digit', 'digit', 'change', 'remove', 'insert', 'truncate'])
        if action == 'digit':
            digits = [at for at, byte in enumerate(data) if byte in b'0123456789']
            data[random_.choice(digits or [0])] = random_.choice(b'0123456789-.e')
        elif action == 'change':
            data[place] = random_.randrange(256)
        elif action == 'insert':
            data[place:place] = random_.choice([b'[' * 100000, bytes([random_.randrange(256)]), b'9' * 5000, b'\x00'])
        else:
            del data[place:place + 1 if action == 'remove' else None]
        if not data:
            break
    return bytes(data)


def read(path):
    """What training does with the file; a data set, or the line that it is refused with."""
    _read.clear()
    try:
        dataset = CocoDataset(ann_file=str(path), metainfo=dict(classes=CLASSES), data_prefix=dict(img='images/'),
                              filter_cfg=dict(filter_empty_gt=False, min_size=0), pipeline=[])
        check_classes(dataset, len(CLASSES))
        return dataset
    except Exception as error:  # whatever MMDetection stumbles over; our programs then say this in its place
        fault = str(error) if str(path) in str(error) else annotation_file_fault(str(path))
        assert fault is not None, f'refused without a reason: {error!r}'
        return fault


def boxes_of(dataset):
    return {info['img_id']: sorted((instance['bbox_label'], *instance['bbox']) for instance in info['instances'])
            for info in map(dataset.get_data_info, range(len(dataset)))}


def boxes_by_definition(content):
    """Objects of each image as COCO's format has them: with an area, within the image, of a class."""
    labels = {category['id']: CLASSES.index(category['name']) for category in content['categories']
              if category['name'] in CLASSES}
    found = {image['id']: [] for image in content.get('images', [])}
    sizes = {image['id']: (image['width'], image['height']) for image in content.get('images', [])}
    for annotation in content.get('annotations', []):
        image_id, (x, y, width, height) = annotation['image_id'], annotation['bbox']
        if image_id not in found or annotation['category_id'] not in labels or annotation.get('ignore'):
            continue
        inside = [max(0, min(start + side, size) - max(start, 0))
                  for start, side, size in zip((x, y), (width, height), sizes[image_id], strict=True)]
        if min(width, height) >= 1 and annotation['area'] > 0 and min(inside) > 0:
            found[image_id].append((labels[annotation['category_id']], x, y, x + width, y + height))
    return {image: sorted(boxes) for image, boxes in found.items()}


@pytest.mark.parametrize('mutate', [mutated_json, mutated_bytes])
def test_a_changed_annotation_file_is_read_right_or_refused_in_one_line(tmp_path, monkeypatch, mutate):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'annotations.json'
    counts = dict(read=0, refused=0)
    for seed in range(NUMBER):
        path.write_bytes(mutate(random.Random(seed)))
        result = read(path)
        if isinstance(result, str):
            assert str(path) in result and len(result.splitlines()) == 1 and len(result) < 600, f'{seed}: {result}'
            counts['refused'] += 1
        else:
            assert boxes_of(result) == boxes_by_definition(json.loads(path.read_bytes())), f'mutation {seed}'
            counts['read'] += 1
    assert min(counts.values()) > NUMBER // 20, counts  # both happen
    assert not (tmp_path / 'code_ran').exists()


def test_the_unchanged_file_is_read(tmp_path):
    path = tmp_path / 'annotations.json'
    path.write_text(json.dumps(valid_content()))
    assert boxes_of(read(path)) == boxes_by_definition(valid_content())


@pytest.mark.parametrize(('change', 'said'), [
    (lambda content: content['annotations'][2].update(bbox=[1, 2, float('nan'), 4]),
     'annotations[2] has the bbox [1, 2, nan, 4]; expected four numbers: x, y, width, height'),
    (lambda content: content['annotations'][1].pop('area'), "annotations[1] has no 'area'"),
    (lambda content: content['images'][1].update(id=3), 'images[1] has the id 3 of images[0]'),
    (lambda content: content.update(images=None), 'it has no list of "images"'),
], ids=['nan', 'missing', 'double', 'no list'])
def test_a_fault_is_named_with_its_place(tmp_path, change, said):
    content = valid_content()
    change(content)
    path = tmp_path / 'annotations.json'
    path.write_text(json.dumps(content))
    assert read(path).startswith(f'{path}: {said}')


def test_a_pickle_in_place_of_an_annotation_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for suffix in ('.json', '.pkl', '.yaml'):
        path = tmp_path / f'annotations{suffix}'
        path.write_bytes(b'cos\nsystem\n(S"touch code_ran"\ntR.')
        assert 'is no JSON' in read(path)
    assert not (tmp_path / 'code_ran').exists()
