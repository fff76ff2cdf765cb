"""CrowdHuman on a made set: the converter, a COCO model tested on it (zero-shot), and training on it."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS, METRICS
from mmdet.utils import register_all_modules
from PIL import Image

from mmdet_diffusion.heads import SamplingSettings
from mmdet_diffusion.post_processing import finish_image, merge_steps
from mmdet_diffusion.structures import Detections
from mmdet_diffusion.testing import REPOSITORY, load_config

sys.path.insert(0, str(REPOSITORY / 'tools' / 'dataset_converters'))  # as Python does for a script
script = importlib.import_module('crowdhuman_to_coco')
sys.path.pop(0)

ZERO_SHOT = 'diffusiondet_r50_fpn_8xb2-450k_coco_test-crowdhuman.py'
TRAINING = 'diffusiondet_r50_fpn_8xb2-50k_crowdhuman.py'
SIZES = {'283082,3a29c000': (120, 80), '283991,b18d8000': (64, 96), 'nobody': (50, 40)}


def person(vbox, tag='person', **extra):
    """An annotation whose full box is taller than what is visible."""
    x, y, width, height = vbox
    return dict(tag=tag, vbox=vbox, fbox=[x, y, width, 2 * height], hbox=[x, y, width, 1], head_attr={},
                extra=dict(box_id=0, **extra))


RECORDS = [
    dict(ID='283082,3a29c000', gtboxes=[
        person([10, 5, 30, 60]), person([50, 10, 20, 40], occ=1), person([80, 10, 30, 50], ignore=1),
        person([0, 60, 40, 20], tag='mask', ignore=1), person([5, 5, 0, 10])]),
    dict(ID='283991,b18d8000', gtboxes=[person([4.5, 8, 20, 70])]),
    dict(ID='nobody', gtboxes=[]),
]


@pytest.fixture
def crowdhuman(tmp_path):
    """A made set: .odgt and images, as they are distributed."""
    (tmp_path / 'Images').mkdir()
    for name, size in SIZES.items():
        Image.new('RGB', size, (90, 120, 60)).save(tmp_path / 'Images' / f'{name}.jpg')
    write_odgt(tmp_path, RECORDS)
    return tmp_path


def write_odgt(folder, records):
    (folder / 'annotation_val.odgt').write_text('\n'.join(map(json.dumps, records)) + '\n')


def convert(folder):
    """What the script printed; it writes where the config looks."""
    printed = StringIO()
    with redirect_stdout(printed):
        script.main([str(folder / 'annotation_val.odgt'), str(folder / 'annotations' / 'val_visible.json'),
                     '--image-dir', str(folder / 'Images')])
    return printed.getvalue()


def converted(folder):
    return json.loads((folder / 'annotations' / 'val_visible.json').read_text())


def test_people_have_their_visible_boxes_and_what_is_ignored_is_a_crowd(crowdhuman):
    printed = convert(crowdhuman)
    assert '3 images, 3 people, 2 ignored boxes, 1 without visible area left out' in printed
    content = converted(crowdhuman)
    assert [(image['file_name'], (image['width'], image['height'])) for image in content['images']] == [
        (f'{name}.jpg', size) for name, size in SIZES.items()]
    boxes = [(entry['image_id'], entry['bbox'], entry['iscrowd']) for entry in content['annotations']]
    assert boxes == [(1, [10, 5, 30, 60], 0), (1, [50, 10, 20, 40], 0), (1, [80, 10, 30, 50], 1),
                     (1, [0, 60, 40, 20], 1), (2, [4.5, 8, 20, 70], 0)]
    assert len({entry['id'] for entry in content['annotations']}) == 5
    names = {category['id']: category['name'] for category in content['categories']}
    assert tuple(names.values()) == CocoDataset.METAINFO['classes']
    assert {names[entry['category_id']] for entry in content['annotations']} == {'person'}


def test_a_missing_image_is_named_and_nothing_is_written(crowdhuman):
    (crowdhuman / 'Images' / 'nobody.jpg').unlink()
    with pytest.raises(SystemExit, match='1 of 3 images are not in .*: nobody.jpg'):
        convert(crowdhuman)
    assert not (crowdhuman / 'annotations').exists()


@pytest.mark.parametrize(('record', 'message'), [
    ('not json', 'line 1 of .*annotation_val.odgt is no CrowdHuman record'),
    (dict(ID='nobody'), "line 1 of .*: KeyError.'gtboxes'"),
    (dict(ID='nobody', gtboxes=None), 'line 1 of .*, image nobody: "gtboxes" is no list but None'),
    (dict(ID='nobody', gtboxes=dict(tag='person')), '"gtboxes" is no list but {'),
    (dict(ID='nobody', gtboxes=[dict(tag='person')]),
     'line 1 of .*, image nobody: a box without a proper "tag", "vbox" or "extra"'),
    (dict(ID='nobody', gtboxes=[dict(person([1, 2, 3, 4]), extra=None)]), 'image nobody: .*"extra".*NoneType'),
    (dict(ID='nobody', gtboxes=[7]), 'image nobody: a box without'),
    (dict(ID='nobody', gtboxes=[person([float('nan'), 2, 3, 4])]), 'line 1 of .*, image nobody: .*not finite: .nan, 2'),
    (dict(ID='nobody', gtboxes=[person([1, float('-inf'), 3, 4])]), 'not finite'),
    (dict(ID='nobody', gtboxes=[person([1, 2, float('nan'), 4])]), 'not finite'),
    (dict(ID='nobody', gtboxes=[person([1, 2, 3, float('inf')])]), 'not finite'),
])
def test_a_wrong_record_is_named_and_nothing_is_written(crowdhuman, record, message):
    write_odgt(crowdhuman, [record])
    with pytest.raises(SystemExit, match=message):
        convert(crowdhuman)
    assert not (crowdhuman / 'annotations').exists()


def test_an_image_given_twice_is_named_and_nothing_is_written(crowdhuman):
    write_odgt(crowdhuman, [*RECORDS, RECORDS[1]])
    with pytest.raises(SystemExit, match='line 4 of .*, image 283991,b18d8000: an earlier line has this ID too'):
        convert(crowdhuman)
    assert not (crowdhuman / 'annotations').exists()


def test_nothing_is_overwritten(crowdhuman):
    convert(crowdhuman)
    before = converted(crowdhuman)
    with pytest.raises(SystemExit, match='val_visible.json exists'):
        convert(crowdhuman)
    assert converted(crowdhuman) == before


# Zero-shot ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def zero_shot(crowdhuman):
    """Data set and metric of the config."""
    convert(crowdhuman)
    register_all_modules(init_default_scope=True)
    cfg = load_config(ZERO_SHOT)
    dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, data_root=str(crowdhuman)))
    metric = METRICS.build(dict(cfg.test_evaluator, ann_file=str(crowdhuman / cfg.ann_file)))
    metric.dataset_meta = dataset.metainfo
    return dataset, metric


def evaluate(dataset, metric, labels_and_scores, keep=1.0):
    """AP50 of the people's own boxes (a share of them), given every label with its score."""
    for index in range(len(dataset)):
        instances = [one for one in dataset.get_data_info(index)['instances'] if not one['ignore_flag']]
        boxes = torch.tensor([one['bbox'] for one in instances[:round(keep * len(instances))]]).reshape(-1, 4)
        number = len(labels_and_scores)
        metric.process({}, [
            dict(img_id=dataset.get_data_info(index)['img_id'], ori_shape=(10, 10), pred_instances=dict(
                bboxes=boxes.repeat(number, 1),
                scores=torch.tensor([score for _, score in labels_and_scores]).repeat_interleave(len(boxes)),
                labels=torch.tensor([label for label, _ in labels_and_scores]).repeat_interleave(len(boxes))))
        ])
    return metric.evaluate(len(dataset))['coco/bbox_mAP_50']


def test_right_boxes_of_persons_give_an_ap50_of_1_however_many_other_classes_are_detected(zero_shot):
    assert evaluate(*zero_shot, [(0, 0.5), *((label, 0.9) for label in range(1, 80))]) == 1.0


def test_right_boxes_of_another_class_alone_give_0(zero_shot):
    assert evaluate(*zero_shot, [(1, 0.9)]) == 0.0


def test_people_who_are_missed_lower_the_ap50(zero_shot):
    assert 0.2 < evaluate(*zero_shot, [(0, 0.9)], keep=0.5) < 0.9


def four_steps_of_2000_boxes(people):
    """Detections of one image, with the people last and all the others in its ignored region.

    No two overlap by half, so that NMS leaves all, and detections in an ignored region are neither right nor wrong.
    """
    number = 4 * 2000 - len(people)
    column, row = torch.arange(number) % 100, torch.arange(number) // 100
    corner = torch.stack([0.4 * column, 60 + 0.25 * row], dim=1)
    boxes = torch.cat([torch.cat([corner, corner + torch.tensor([0.4, 0.25])], dim=1), people])
    scores = torch.linspace(0.9, 0.1, len(boxes))
    return [Detections(bboxes[None], part[None], torch.zeros(1, 2000, dtype=torch.long))
            for bboxes, part in zip(boxes.split(2000), scores.split(2000), strict=True)]


def test_every_detection_of_4_steps_of_2000_boxes_is_kept_and_evaluated(zero_shot):
    dataset, metric = zero_shot
    settings = SamplingSettings.from_cfg(load_config(ZERO_SHOT).model.test_cfg, 2000, 1000)
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        people = torch.tensor([one['bbox'] for one in info['instances'] if not one['ignore_flag']]).reshape(-1, 4)
        if index == 0:
            merged = merge_steps(four_steps_of_2000_boxes(people), 'all')
            found = finish_image(Detections(*(values[0] for values in merged)), dict(img_shape=(80, 120)), settings,
                                 rescale=False)
            assert len(found) == 8000
        else:
            found = dict(bboxes=people, scores=torch.ones(len(people)), labels=torch.zeros(len(people)).long())
        metric.process({}, [dict(img_id=info['img_id'], ori_shape=(80, 120), pred_instances=found)])
    assert metric.evaluate(len(dataset))['coco/bbox_mAP_50'] == 1.0


REDUCED = """
_base_ = '{config}'
model = dict(
    backbone=dict(depth=18, base_channels=4, stem_channels=4, init_cfg=None),
    neck=dict(in_channels=[4, 8, 16, 32], out_channels=16),
    bbox_head=dict(feat_channels=16, num_stages=2, roi_extractor=dict(out_channels=16),
                   stage=dict(num_attn_heads=4, feedforward_channels=32, dynamic_dim=4)))
"""


def run(tool, folder, config, *args):
    """Run a tool from the repository's root on a config with a reduced model; gives what it printed."""
    reduced = folder / 'reduced.py'
    reduced.write_text(REDUCED.format(config=REPOSITORY / 'configs' / 'diffusiondet' / config))
    done = subprocess.run(
        [sys.executable, f'tools/{tool}.py', str(reduced), *args], cwd=REPOSITORY, capture_output=True, text=True,
        check=False, env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def loader_options(loader, folder):
    return [f'{loader}.dataset.data_root={folder}/', f'{loader}.num_workers=0', f'{loader}.persistent_workers=False']


def test_a_coco_model_is_tested_on_crowdhuman_with_more_steps_and_boxes(crowdhuman):
    """The command of docs/model_zoo.md with random weights."""
    convert(crowdhuman)
    torch.save(dict(state_dict={}), crowdhuman / 'model.pth')
    printed = run('test', crowdhuman, ZERO_SHOT, str(crowdhuman / 'model.pth'), '--work-dir', str(crowdhuman / 'work'),
                  '--cfg-options', *loader_options('test_dataloader', crowdhuman),
                  'test_dataloader.dataset.pipeline.1.scale=(128,96)',
                  f'test_evaluator.ann_file={crowdhuman}/annotations/val_visible.json',
                  'model.test_cfg.sampling_timesteps=2', 'model.test_cfg.num_proposals=600')
    ap50 = float(re.search(r'coco/bbox_mAP_50: ([\d.]+)', printed).group(1))
    assert 0 <= ap50 < 0.5


# Training -------------------------------------------------------------------------------------------------------------


def test_training_on_crowdhuman_logs_losses_and_scores_full_bodies(crowdhuman):
    write_odgt(crowdhuman, RECORDS[:2])  # CrowdHumanMetric takes no image without people, and CrowdHuman has none
    shutil.copy(crowdhuman / 'annotation_val.odgt', crowdhuman / 'annotation_train.odgt')
    printed = run('train', crowdhuman, TRAINING, '--work-dir', str(crowdhuman / 'work'), '--cfg-options',
                  *loader_options('train_dataloader', crowdhuman), *loader_options('val_dataloader', crowdhuman),
                  'val_dataloader.dataset.pipeline.1.scale=(128,96)',
                  f'val_evaluator.ann_file={crowdhuman}/annotation_val.odgt', 'val_evaluator.num_ji_process=1',
                  'model.bbox_head.num_proposals=20', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2',
                  'default_hooks.logger.interval=1')
    assert len(re.findall(r'Iter\(train\) \[\d/2\].* loss_iou: [\d.]+', printed)) == 2
    scores = re.search(r'crowd_human/mAP: ([\d.]+)\s+crowd_human/mMR: ([\d.]+)\s+crowd_human/JI: ([\d.]+)', printed)
    assert all(0 <= float(score) <= 1 for score in scores.groups())


def test_full_bodies_are_trained_on_and_ignored_ones_are_not(crowdhuman):
    register_all_modules(init_default_scope=True)
    cfg = load_config(TRAINING).test_dataloader.dataset
    dataset = DATASETS.build(dict(cfg, data_root=str(crowdhuman)))
    instances = dataset.get_data_info(0)['instances']
    assert [(one['bbox'], one['ignore_flag']) for one in instances] == [
        ([10, 5, 40, 125], 0), ([50, 10, 70, 90], 0), ([80, 10, 110, 110], 1), ([0, 60, 40, 100], 1),
        ([5, 5, 5, 25], 0)]
