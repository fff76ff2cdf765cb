"""``mmdet-diffusion configs new``: from annotation files to a config."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS, MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from PIL import Image

from mmdet_diffusion.hooks.dataset_check_hook import check_classes
from mmdet_diffusion.object_sizes import measure_sizes
from mmdet_diffusion.testing import load_tool

configs = load_tool('misc/configs.py')
new_config, own_annotations = configs.new_config, configs.own_annotations
MINE = ['mine/parts.py', 'mine/parts_train.json', 'mine/parts_val.json']


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


def test_entries_that_nobody_reads_may_be_anything(here):
    content = annotations()
    for image in content['images']:
        image.update(coco_url=None, license=None, name=None, bbox=None)
    for one in content['annotations']:
        one['name'] = None
    call(content, val=annotations(4, first=20))
    content['images'][3]['file_name'] = None
    with pytest.raises(SystemExit, match=r'images\[3\] has the file_name None; expected text'):
        call(content, val=annotations(4, first=20))


def test_the_config_reads_the_data_and_builds_the_model(here, capsys):
    assert call(annotations(), val=annotations(4, first=20)) == 0
    printed = capsys.readouterr().out
    assert '10 pictures to train on, 4 to validate, 2 classes.' in printed
    assert 'categories left out, without an object to learn from: things' in printed
    assert printed.splitlines()[:3] == MINE
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
    train, val = annotations(), annotations(4, first=20)
    for one in val['annotations']:
        one['bbox'][2:] = [9.0, 9.0]
    call(train, val=val)
    measured = measure_sizes(train)
    coder = Config.fromfile('mine/parts.py').model.bbox_head.box_sampler.coder
    assert (coder.type, coder.log_scale, coder.log_aspect) == ('SizeBBoxCoder', measured.log_scale, measured.log_aspect)


def names(part):
    return [image['file_name'] for image in part['images']]


def read_parts(here):
    return [json.loads((here / 'mine' / f'parts_{name}.json').read_text()) for name in ('train', 'val')]


def test_a_part_is_kept_to_validate_where_there_is_one_file(here):
    call(annotations(10), '--val-share', '0.3')
    train, val = read_parts(here)
    assert (len(train['images']), len(val['images'])) == (7, 3)
    assert sorted(names(train) + names(val)) == sorted(f'{number}.png' for number in range(10))
    for part in (train, val):
        assert [one['id'] for one in part['annotations']] == list(range(1, 3 * len(part['images']) + 1))
        assert {one['image_id'] for one in part['annotations']} == {image['id'] for image in part['images']}
    written = (here / 'mine' / 'parts_val.json').read_text()
    call(annotations(10), '--val-share', '0.3')  # the same each time, so that nothing is refused
    assert (here / 'mine' / 'parts_val.json').read_text() == written


def test_the_split_keeps_copies_together_and_the_last_picture_of_a_class_in_training():
    content = annotations(12)
    for place, image in enumerate(content['images']):
        image['file_name'] = f'{place // 3}_jpg.rf.{place}.png'  # as Roboflow names them
    content['categories'].append(dict(id=9, name='rare'))
    for one in content['annotations']:
        one['category_id'] = 9 if one['image_id'] < 3 else one['category_id']
    for share in (0.01, 0.5, 0.99):
        parts = own_annotations.split(content, share)
        sources = [{name.split('.rf.')[0] for name in names(part)} for part in parts]
        assert not sources[0] & sources[1] and all(sources) and '0_jpg' in sources[0]


def test_pictures_with_and_without_objects_are_split_alike():
    content = annotations(20)
    content['annotations'] = [one for one in content['annotations'] if one['image_id'] < 5]
    train, val = own_annotations.split(content, 0.2)
    assert len({one['image_id'] for one in val['annotations']}) == 1 and len(val['images']) == 4


def test_what_programs_leave_out_is_filled_in_and_what_is_not_trained_on_goes(here, capsys):
    content = annotations(6)
    for place, one in enumerate(content['annotations']):
        one['id'] = f'annotation {place}'  # or a UUID
        del one['area']
    content['annotations'][0].update(bbox=[5.0, 5.0, 0.0, 10.0])
    content['annotations'][1].update(iscrowd=True)
    content['annotations'][2].update(ignore=1)
    del content['annotations'][3]['iscrowd']
    content['annotations'][4]['iscrowd'] = None
    content['categories'].append(dict(id=5, name='bolt'))  # a namesake without an object
    call(content, val=annotations(4, first=20))
    train, _ = read_parts(here)
    assert 'boxes left out, without an area, outside of their picture or to be ignored: 2' in capsys.readouterr().out
    assert [one['iscrowd'] for one in train['annotations'][:3]] == [1, 0, 0]
    assert all(one['area'] == one['bbox'][2] * one['bbox'][3] > 0 for one in train['annotations'])
    cfg = Config.fromfile('mine/parts.py')
    assert sum(len(sample['instances']) for sample in DATASETS.build(dict(cfg.train_dataloader.dataset, pipeline=[])))


def test_the_config_works_from_any_folder_and_with_any_names(here, monkeypatch, capsys):
    folder = here / "it's {{ $HOME:x }}"
    (here / 'images').rename(folder)
    content = annotations()
    content['categories'][1]['name'] = '{{ fileBasename }} {0}'
    (here / 'train.json').write_text(json.dumps(content))
    configs.main(['new', 'my own/parts.py', '--train', 'train.json', '--images', str(folder)])
    assert "mmdet-diffusion train 'my own/parts.py'" in capsys.readouterr().out
    monkeypatch.chdir('/')
    cfg = Config.fromfile(here / 'my own' / 'parts.py')
    assert cfg.metainfo.classes[0] == '{{ fileBasename }} {0}'
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert len(DATASETS.build(loader.dataset)[0]['data_samples'].gt_instances)


@pytest.mark.parametrize('target', ['5" disks/parts.py', 'a{{ fileBasename }}/parts.py', 'a\\b/parts.py'])
def test_a_place_that_mmengine_would_misread_is_refused(here, target):
    (here / 'train.json').write_text(json.dumps(annotations()))
    before = sorted(here.rglob('*'))
    with pytest.raises(SystemExit, match='^no config was written: .* misreads in the path of a config; choose another'):
        configs.main(['new', target, '--train', 'train.json', '--images', 'images'])
    assert sorted(here.rglob('*')) == before


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


@pytest.mark.parametrize(('length', 'sides'), [(None, [320]), ('999', [320]), ('1500', [288, 320, 352])])
def test_a_long_training_has_pictures_that_vary(here, monkeypatch, length, sides):
    monkeypatch.delenv('MAX_ITERS', raising=False)
    if length:
        monkeypatch.setenv('MAX_ITERS', length)
    call(annotations(), '--flips', 'all', val=annotations(4, first=20))
    cfg = Config.fromfile('mine/parts.py')
    _, _, resize, flip, *rest = cfg.train_pipeline
    assert resize.scales == [(side, side) for side in sides]
    assert flip.direction == ['horizontal', 'vertical', 'diagonal']
    assert [one.type for one in rest] == ['PhotoMetricDistortion'] * (len(sides) > 1) + ['PackDetInputs']
    assert len(DATASETS.build(cfg.train_dataloader.dataset)[0]['data_samples'].gt_instances)


def test_a_few_small_pictures_do_not_choose_the_input():
    content = annotations(10, side=1600)
    for image in content['images'][:3]:
        image.update(width=100, height=50)
    for one in content['annotations']:
        one['bbox'][2:] = [27.0, 27.0]
    assert new_config.input_size(content)[0] == 960


def test_nor_do_a_few_large_ones_however_many_objects_they_hold():
    content = annotations(10, side=400)
    for one in content['annotations']:
        one['bbox'][2:] = [4.0, 4.0]
    content['images'][0].update(width=4000, height=2000)
    content['annotations'] += [dict(content['annotations'][0], id=100 + number) for number in range(100)]
    assert new_config.input_size(content)[0] == 416  # 400, as a multiple of 32


LEARNT = dict(left_of_it=[-30, 5, 20, 20], above=[5, -30, 20, 20], right_of_it=[410, 5, 20, 20], below=[5, 210, 20, 20],
              narrow=[5, 5, 0.5, 20], flat=[5, 5, 20, 0.5], reaching_out=[-5, -5, 20, 20], whole=[5, 5, 20, 20])


@pytest.mark.parametrize('change', [*LEARNT, 'area', 'ignore', 'iscrowd'])
def test_what_is_learnt_from_is_what_mmdetection_trains_on(here, change):
    annotation = dict(id=1, image_id=0, category_id=1, iscrowd=0, bbox=LEARNT.get(change, [5, 5, 20, 20]), area=400.0)
    annotation |= dict(area=dict(area=0), ignore=dict(ignore=1), iscrowd=dict(iscrowd=1)).get(change, {})
    content = dict(annotations(1, objects=0), annotations=[annotation])
    (here / 'train.json').write_text(json.dumps(content))
    dataset = CocoDataset(ann_file='train.json', metainfo=dict(classes=('bolt', )), data_prefix=dict(img='images/'),
                          filter_cfg=dict(filter_empty_gt=False), pipeline=[])
    trained_on = [one for one in dataset.get_data_info(0)['instances'] if not one['ignore_flag']]
    assert own_annotations.is_learnt_from(annotation, content['images'][0]) == bool(trained_on)
    assert bool(trained_on) == (change in ('reaching_out', 'whole'))


@pytest.mark.parametrize(('side', 'objects', 'words'), [
    (4000, 3, r'less than 9 pixels at the input of 1344: cut .* tiles\nan .* about 18 times the time of 320'),
    (100, 3, 'at the input of 128: a larger size in the config enlarges them'),
    (400, 600, 'an image has 600 objects, more than the 500 boxes in training'),
    (400, 202, "an image has 101 objects of a class, and COCO's AP counts 100 detections")])
def test_what_cannot_be_made_good_is_said(side, objects, words):
    content = annotations(2, side=side, objects=objects)
    for one in content['annotations']:
        one['bbox'][2:] = [7.0, 7.0] if side == 100 else [27.0, 27.0]
    data = own_annotations.DataSet(content, content, ('bolt', 'nut'), ())
    assert re.search(words, '\n'.join(new_config.warnings(data, new_config.choose(data))))


def test_there_is_room_for_the_detections_of_full_images(here):
    call(annotations(2, objects=150), val=annotations(2, first=20, objects=150))
    cfg = Config.fromfile('mine/parts.py').model
    assert (cfg.bbox_head.num_proposals, cfg.test_cfg.num_proposals, cfg.test_cfg.max_per_img) == (450, 1350, 1350)


def test_pictures_of_the_two_files_may_lie_apart(here):
    (here / 'others').mkdir()
    Image.new('RGB', (400, 200)).save('others/3.png')
    for name, content in (('train', annotations()), ('val', annotations(1, first=3))):
        (here / f'{name}.json').write_text(json.dumps(content))
    assert configs.main(['new', 'mine/parts.py', '--train', 'train.json', '--val', 'val.json', '--images', 'images',
                         'others']) == 0
    cfg = Config.fromfile('mine/parts.py')
    assert cfg.train_dataloader.dataset.data_prefix.img == f'{here}/images/'
    assert cfg.test_dataloader.dataset.data_prefix.img == f'{here}/others/'


def test_pictures_that_are_trained_on_and_validated_are_named(here, capsys):
    call(annotations(), val=annotations(4))
    assert 'WARNING: 4 pictures are both trained on and validated, such as 0.png' in capsys.readouterr().out


def test_a_folder_with_an_apostrophe_is_a_folder(here):
    for name in ('train', 'val'):
        (here / f'{name}.json').write_text(json.dumps(annotations()))
    assert configs.main(['new', "bob's data/parts.py", '--train', 'train.json', '--val', 'val.json', '--images',
                         'images']) == 0
    cfg = Config.fromfile("bob's data/parts.py")
    assert Path(cfg.train_dataloader.dataset.ann_file) == here / "bob's data" / 'parts_train.json'


@pytest.mark.parametrize(('length', 'interval'), [(None, 250), ('1000', 250), ('20000', 2000)])
def test_a_training_is_validated_ten_times_at_most_and_keeps_its_best(here, monkeypatch, length, interval):
    if length:
        monkeypatch.setenv('MAX_ITERS', length)
    call(annotations(), val=annotations())
    cfg = Config.fromfile('mine/parts.py')
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == interval
    assert cfg.default_hooks.checkpoint.save_best == 'coco/bbox_mAP'


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


def every_box(change):
    content = annotations()
    for one in content['annotations']:
        one['bbox'] = change(*one['bbox'])
        del one['area']
    return content


def named(change):
    content = annotations()
    for image in content['images']:
        image['file_name'] = change(image['file_name'])
    return content


def of_lvis():
    content = annotations()
    content['images'][0]['coco_url'] = content['images'][0].pop('file_name')
    return content


WITHOUT_OBJECTS = dict(annotations(), annotations=[])
RENAMED = changed('categories', 1, name='screw')
RENAMED['categories'][2]['name'] = 'nail'


@pytest.mark.parametrize(('train', 'val', 'words'), [
    (changed('images', 2, file_name='none.png'), None, '1 of 10 pictures are not in .*images, such as none.png'),
    (named('folder/{}'.format), None, 'without its folder: give --images the folder that the names start from'),
    (named('folder\\{}'.format), None, 'without its folder: the names have backslashes'),
    (named(lambda name: 400 * 'a'), None, '10 of 10 pictures are not in'),
    (changed('images', 0, width=640), None, '0.png has 400 x 200 pixels, the file says 640 x 200'),
    (changed('annotations', 1, bbox=[1, 2, 3]), None, r'train.json: annotations\[1\] has the bbox \[1, 2, 3\]'),
    (changed('annotations', 1, image_id=99), None, 'has the image_id 99, which the file does not list'),
    (changed('annotations', 1, category_id=7), None, 'has the category_id 7, which the file does not list'),
    (changed('categories', 1, name="nut 'A'"), None, 'two categories with objects are called'),
    (every_box(lambda x, y, w, h: [x + 380, y, x + w, y + h]), None, '30 of 30 boxes reach out of their pictures'),
    (every_box(lambda x, y, w, h: [x / 400, y / 200, w / 400, h / 200]), None, 'too few pictures with objects'),
    (every_box(lambda x, y, w, h: [x / 400, y / 200, w / 400, h / 200]), annotations(),
     r'none of the 30 boxes to train on can be learnt from, such as .*in pixels'),
    (WITHOUT_OBJECTS, annotations(), 'none of the 0 boxes to train on can be learnt from'),
    (annotations(), WITHOUT_OBJECTS, "there is no object of bolt, nut 'A' to validate on"),
    (annotations(), RENAMED, "there is no object of bolt, nut 'A' to validate on"),
    (annotations(1, objects=1), annotations(1, objects=1), 'it has 1 objects with an area'),
    (annotations(1), None, 'too few pictures with objects'),
    (of_lvis(), None, r"images\[0\] has no 'file_name'"),
    ({}, None, 'has no lists of "images" and "annotations"')])
def test_what_is_wrong_is_said_in_one_line_and_nothing_written(here, train, val, words):
    with pytest.raises(SystemExit, match=f'^no config was written: .*{words}'):
        call(train, val=val)
    assert not (here / 'mine').exists()


def test_a_picture_that_is_none_and_a_folder_that_is_not_there_are_named(here):
    (here / 'images' / '0.png').write_text('no picture')
    with pytest.raises(SystemExit, match='0.png cannot be read as a picture'):
        call(annotations())
    (here / 'images').rename('others')
    with pytest.raises(SystemExit, match='there is no folder .*images'):
        call(annotations())


def test_a_picture_counts_as_its_exif_tag_turns_it(here):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (200, 400)).save('images/0.png', exif=exif)
    assert call(annotations(2), val=annotations(2, first=20)) == 0


def test_a_config_that_is_there_stays(here):
    call(annotations(), val=annotations(4, first=20))
    (here / 'mine' / 'parts.py').write_text('edited = True')
    with pytest.raises(SystemExit, match='mine/parts.py is there and is another; nothing was written'):
        call(annotations(), val=annotations(4, first=20))
    assert (here / 'mine' / 'parts.py').read_text() == 'edited = True'


def test_a_file_in_the_place_of_a_folder_leaves_nothing(here):
    (here / 'mine').mkdir()
    (here / 'mine' / '_base_').touch()
    with pytest.raises(SystemExit, match='_base_ is no folder'):
        call(annotations(), val=annotations(4, first=20))
    assert [path.name for path in (here / 'mine').iterdir()] == ['_base_']


@pytest.mark.parametrize(('args', 'words'), [
    (['new', 'mine', '--train', 'a', '--images', 'b'], 'a config is a file such as cells.py'),
    (['new', 'my-own.py', '--train', 'a', '--images', 'b'], 'of letters, digits and underscores'),
    (['new', f'{300 * "a"}.py', '--train', 'a', '--images', 'b'], 'of letters, digits and underscores'),
    (['new', 'mine/_base_/a.py', '--train', 'a', '--images', 'b'], 'is for the files that configs inherit from'),
    (['new', 'mine.py', '--train', 'a', '--images', 'b', 'c'], '--images takes a folder for each annotation file'),
    (['new', 'mine.py', '--train', 'a', '--images', 'b', '--val', 'c', '--val-share', '.1'], 'goes without --val'),
    (['new', 'mine.py', '--train', 'a', '--images', 'b', '--val-share', '1'], 'must lie between 0 and 1')])
def test_wrong_arguments_are_refused(capsys, args, words):
    with pytest.raises(SystemExit):
        configs.main(args)
    assert words in capsys.readouterr().err
