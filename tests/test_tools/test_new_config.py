"""``mmdet-diffusion configs new``: from annotation files to a config."""

import json

import numpy as np
import pytest
from mmdet.registry import DATASETS, MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from PIL import Image

from mmdet_diffusion.hooks.dataset_check_hook import check_classes
from mmdet_diffusion.testing import load_tool

configs = load_tool('misc/configs.py')
new_config = configs.new_config


def annotations(num_images=10, *, first=0, side=400, objects=3):
    """Images of two classes; the third category, the first in the file, has no object, as some programs export it."""
    generator = np.random.default_rng(first)
    content = dict(
        categories=[dict(id=0, name='things'), dict(id=1, name='bolt'), dict(id=2, name="nut 'A'")],
        images=[dict(id=first + place, file_name=f'{first + place}.png', width=side, height=side // 2)
                for place in range(num_images)], annotations=[])
    for image in content['images']:
        for number in range(objects):
            width, height = generator.uniform(20, 60, 2).round().tolist()
            content['annotations'].append(dict(
                id=len(content['annotations']) + 1, image_id=image['id'], category_id=1 + number % 2, iscrowd=0,
                bbox=[5.0, 5.0, width, height], area=width * height))
    return content


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    register_all_modules(init_default_scope=True)
    (tmp_path / 'images').mkdir()
    for number in range(30):
        Image.new('RGB', (400, 200)).save(f'images/{number}.png')
    return tmp_path


def call(train, *args, val=None):
    words = ['new', 'mine/parts.py', '--images', 'images', '--train', 'train.json']
    with open('train.json', 'w') as file:
        json.dump(train, file)
    if val is not None:
        with open('val.json', 'w') as file:
            json.dump(val, file)
        words += ['--val', 'val.json']
    return configs.main([*words, *args])


def test_the_config_reads_the_data_and_builds_the_model(here, capsys):
    assert call(annotations(), val=annotations(4, first=20)) == 0
    printed = capsys.readouterr().out
    assert '10 pictures to train on, 4 to validate, 2 classes.' in printed
    assert 'left out, without an object to learn from: things' in printed
    cfg = Config.fromfile('mine/parts.py')
    assert cfg.metainfo.classes == ('bolt', "nut 'A'")
    cfg.model.backbone.init_cfg = None
    head = MODELS.build(cfg.model).bbox_head
    assert (head.num_classes, head.num_proposals) == (2, 100)
    for loader, number in ((cfg.train_dataloader, 10), (cfg.val_dataloader, 4), (cfg.test_dataloader, 4)):
        dataset = DATASETS.build(loader.dataset)
        check_classes(dataset, 2)
        assert len(dataset) == number
        sample = dataset[0]
        assert tuple(sample['inputs'].shape) == (3, 160, 320)
        assert set(sample['data_samples'].gt_instances.labels.tolist()) == {0, 1}


def test_sizes_are_those_of_the_objects_to_train_on(here):
    train, val = annotations(), annotations(4, first=20, side=100)
    call(train, val=val)
    measured = new_config.object_sizes.measure_sizes(train)
    coder = Config.fromfile('mine/parts.py').model.bbox_head.box_sampler.coder
    assert (coder.type, coder.log_scale, coder.log_aspect) == ('SizeBBoxCoder', measured.log_scale, measured.log_aspect)


def test_a_part_is_kept_to_validate_where_there_is_one_file(here):
    train = annotations(10)
    call(train, '--val-share', '0.3')
    parts = [json.loads((here / 'mine' / f'parts_{name}.json').read_text()) for name in ('train', 'val')]
    assert [len(part['images']) for part in parts] == [7, 3]
    assert sorted(image['id'] for part in parts for image in part['images']) == list(range(10))
    for part in parts:
        ids = {image['id'] for image in part['images']}
        assert part['annotations'] == [one for one in train['annotations'] if one['image_id'] in ids]
        assert part['categories'] == train['categories']
    assert new_config.split(train, 0.3) == tuple(parts)  # the same each time
    assert len(new_config.split(annotations(2), 0.01)[1]['images']) == 1


@pytest.mark.parametrize(('side', 'expected'), [
    (400, 320),  # the least
    (200, 224),  # no larger than the pictures, but a multiple of 32
    (1600, 960),  # objects of 27 pixels at 1600 keep 16
    (6000, 1344)])  # the most
def test_the_input_is_large_enough_for_the_small_objects_and_no_larger_than_the_pictures(side, expected):
    content = annotations(side=side)
    for one in content['annotations']:
        one['bbox'][2:] = [27.0, 27.0]
    assert new_config.input_size(content)[0] == expected


@pytest.mark.parametrize(('objects', 'boxes'), [(3, 100), (33, 100), (34, 150), (60, 200), (400, 500)])
def test_boxes_are_three_times_the_objects_of_the_fullest_image(objects, boxes):
    assert new_config.num_boxes(annotations(2, objects=objects)) == (boxes, objects)


def test_pictures_of_the_two_files_may_lie_apart(here):
    (here / 'others').mkdir()
    Image.new('RGB', (400, 200)).save('others/3.png')
    val = annotations(1, first=3)
    call(annotations(), val=val)
    (here / 'mine' / 'parts.py').unlink()
    assert configs.main(['new', 'mine/parts.py', '--train', 'train.json', '--val', 'val.json', '--images', 'images',
                         'others']) == 0
    cfg = Config.fromfile('mine/parts.py')
    assert cfg.train_dataloader.dataset.data_prefix.img == 'images/'
    assert cfg.test_dataloader.dataset.data_prefix.img == 'others/'


def test_pictures_that_are_trained_on_and_validated_are_named(here, capsys):
    call(annotations(), val=annotations(4))
    assert 'WARNING: 4 pictures are both trained on and validated, such as 0.png' in capsys.readouterr().out


def test_many_classes_keep_the_lines_short(here):
    content = annotations(1)
    content['categories'] = [dict(id=number, name=f'class number {number}') for number in range(1, 41)]
    content['annotations'] = [dict(content['annotations'][0], id=number, category_id=number) for number in range(1, 41)]
    call(content, val=content)
    assert len(Config.fromfile('mine/parts.py').metainfo.classes) == 40
    assert max(map(len, (here / 'mine' / 'parts.py').read_text().splitlines())) <= 120


def changed(section, index, **values):
    content = annotations()
    content[section][index].update(values)
    return content


def without_objects():
    return dict(annotations(), annotations=[])


@pytest.mark.parametrize(('train', 'val', 'words'), [
    (changed('images', 2, file_name='none.png'), None, '1 of 10 pictures are not in images, such as none.png'),
    (changed('annotations', 1, bbox=[1, 2, 3]), None, r'train.json: annotations\[1\] has the bbox \[1, 2, 3\]'),
    (changed('annotations', 1, image_id=99), None, 'has the image_id 99, which the file does not list'),
    (changed('annotations', 1, category_id=7), None, 'has the category_id 7, which the file does not list'),
    (changed('categories', 1, name="nut 'A'"), None, 'two categories are called'),
    (without_objects(), annotations(), 'the training file has no objects'),
    (annotations(1, objects=1), annotations(1, objects=1), 'it has 1 objects with an area'),
    (annotations(1), None, 'one image cannot be split'),
    ({}, None, 'has no lists of "images" and "annotations"'),
    (annotations(), dict(annotations(), categories=annotations()['categories'][::-1]), 'in the same order')])
def test_what_is_wrong_is_said_in_one_line_and_nothing_written(here, train, val, words):
    with pytest.raises(SystemExit, match=f'^no config was written: .*{words}'):
        call(train, val=val)
    assert not (here / 'mine').exists()


def test_a_config_that_is_there_stays(here):
    call(annotations(), val=annotations(4, first=20))
    (here / 'mine' / 'parts.py').write_text('edited = True')
    with pytest.raises(SystemExit, match='mine/parts.py is there; nothing was written'):
        call(annotations(), val=annotations(4, first=20))
    assert (here / 'mine' / 'parts.py').read_text() == 'edited = True'


@pytest.mark.parametrize(('args', 'words'), [
    (['new', 'mine', '--train', 'a', '--images', 'b'], 'a config is a file such as cells.py'),
    (['new', 'my-own.py', '--train', 'a', '--images', 'b'], 'of letters, digits and underscores'),
    (['new', 'mine.py', '--train', 'a', '--images', 'b', 'c'], '--images takes a folder for each annotation file'),
    (['new', 'mine.py', '--train', 'a', '--images', 'b', '--val-share', '1'], 'must lie between 0 and 1')])
def test_wrong_arguments_are_refused(capsys, args, words):
    with pytest.raises(SystemExit):
        configs.main(args)
    assert words in capsys.readouterr().err
