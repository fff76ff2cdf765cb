"""LVIS from annotation file to AP: training and testing on a made set of LVIS v1's form, with its 1203 classes."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmdet.datasets import LVISV1Dataset
from mmdet.registry import DATASETS, METRICS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from PIL import Image

from mmdet_diffusion.evaluation.average_precision import match_detections, scored_detections
from mmdet_diffusion.evaluation.ground_truth import ground_truth
from mmdet_diffusion.losses.federated_loss import read_image_counts
from mmdet_diffusion.testing import REPOSITORY

CONFIG = REPOSITORY / 'configs' / 'diffusiondet' / 'diffusiondet_r50_fpn_8xb2-270k_lvis-v1.py'
CLASSES = LVISV1Dataset.METAINFO['classes']
WIDTH, HEIGHT = 96, 64
FREQUENCIES = {3: 'r', 700: 'c', 1202: 'f'}  # labels of the classes that have objects
KEYS = ('bbox_AP', 'bbox_APr', 'bbox_APc', 'bbox_APf')

# The LVIS config made small enough to train in a second; nothing of its data, loss or evaluation is changed.
REDUCED = """
_base_ = '{config}'
model = dict(
    backbone=dict(depth=18, base_channels=4, stem_channels=4, init_cfg=None),
    neck=dict(in_channels=[4, 8, 16, 32], out_channels=16),
    bbox_head=dict(
        feat_channels=16, num_stages=2, num_proposals=20, roi_extractor=dict(out_channels=16),
        stage=dict(num_attn_heads=4, feedforward_channels=32, dynamic_dim=4),
        criterion=dict(loss_cls=dict(image_counts='{root}/annotations/lvis_v1_train.json'))))
train_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(dataset=dict(data_root='{root}/', pipeline=[
        dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True), dict(type='PackDetInputs')])))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root='{root}/', pipeline=[
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=({width}, {height}), keep_ratio=True), dict(
        type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{root}/annotations/lvis_v1_val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_iters=4, val_interval=4)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=4))
"""


def annotations(number_of_images, folder):
    """A file's content: each image has one object of each class that occurs, and is fully annotated for no other."""
    images, objects = [], []
    for image in range(1, number_of_images + 1):
        images.append(dict(id=image, width=WIDTH, height=HEIGHT, neg_category_ids=[1], not_exhaustive_category_ids=[],
                           coco_url=f'http://images.cocodataset.org/{folder}/{image:012}.jpg'))
        for index, label in enumerate(FREQUENCIES):
            x, y, side = 4 + 30 * index, 4 + image, 24
            objects.append(dict(id=len(objects) + 1, image_id=image, category_id=label + 1, bbox=[x, y, side, side],
                                area=side * side, segmentation=[[x, y, x + side, y, x + side, y + side, x, y + side]]))
    categories = [
        dict(id=label + 1, name=name, frequency=FREQUENCIES.get(label, 'r'), synset='', synonyms=[], definition='',
             image_count=number_of_images if label in FREQUENCIES else 0, instance_count=0)
        for label, name in enumerate(CLASSES)
    ]
    return dict(images=images, annotations=objects, categories=categories, info={}, licenses=[])


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A folder laid out as LVIS v1 is."""
    root = tmp_path_factory.mktemp('lvis_v1')
    (root / 'annotations').mkdir()
    rng = np.random.default_rng(0)
    for split, number in (('train', 4), ('val', 2)):
        content = annotations(number, f'{split}2017')
        (root / 'annotations' / f'lvis_v1_{split}.json').write_text(json.dumps(content))
        (root / f'{split}2017').mkdir()
        for image in range(1, number + 1):
            pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f'{split}2017' / f'{image:012}.jpg')
    (root / 'reduced.py').write_text(REDUCED.format(config=CONFIG, root=root, width=WIDTH, height=HEIGHT))
    return root


def run(tool, root, *args):
    """Run a tool from the repository's root; gives what it printed."""
    done = subprocess.run(
        [sys.executable, f'tools/{tool}.py', str(root / 'reduced.py'), *args, '--work-dir', str(root / 'work')],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def metrics_in(printed, phase):
    line = re.search(rf'Iter\({phase}\).*lvis/bbox_AP: .*', printed).group()
    return {name: float(value) for name, value in re.findall(r'lvis/(\w+): (-?[\d.]+)', line)}


@pytest.fixture(scope='module')
def trained(root):
    return run('train', root)


def test_training_logs_finite_federated_losses_and_saves(trained, root):
    losses = re.findall(r'Iter\(train\) \[\d/4\].* loss_cls: ([\d.]+)', trained)
    assert len(losses) == 4 and all(0 < float(loss) < 1e3 for loss in losses)
    assert (root / 'work' / 'iter_4.pth').is_file()


def test_validation_after_training_gives_ap_of_rare_common_and_frequent_classes(trained):
    metrics = metrics_in(trained, 'val')
    assert all(0 <= metrics[key] <= 1 for key in KEYS)  # LVIS gives -1 where no class of a kind has objects


def test_testing_the_checkpoint_gives_ap_of_rare_common_and_frequent_classes(trained, root):
    printed = run('test', root, str(root / 'work' / 'iter_4.pth'), '--cfg-options',
                  'model.test_cfg.sampling_timesteps=4', 'model.test_cfg.num_proposals=300')
    assert all(0 <= metrics_in(printed, 'test')[key] <= 1 for key in KEYS)


@pytest.fixture(scope='module')
def parts(root):
    """Training set, test set and metric of the config."""
    register_all_modules(init_default_scope=True)
    cfg = Config.fromfile(root / 'reduced.py')
    metric = METRICS.build(cfg.test_evaluator)
    test_set = DATASETS.build(cfg.test_dataloader.dataset)
    metric.dataset_meta = test_set.metainfo
    return DATASETS.build(cfg.train_dataloader.dataset), test_set, metric


def test_labels_of_the_data_the_loss_and_the_evaluation_are_numbered_alike(parts, root):
    train_set, test_set, metric = parts
    assert len(train_set) == 4 and {one['bbox_label'] for one in test_set.get_data_info(0)['instances']} == set(
        FREQUENCIES)
    counts = read_image_counts(str(root / 'annotations' / 'lvis_v1_train.json'))
    assert [label for label, count in enumerate(counts) if count] == list(FREQUENCIES)
    for shift, expected in ((0, 1.0), (1, 0.0)):
        for index in range(len(test_set)):
            info = test_set.get_data_info(index)
            boxes = torch.tensor([one['bbox'] for one in info['instances']])
            labels = torch.tensor([one['bbox_label'] for one in info['instances']])
            predicted = dict(bboxes=boxes, scores=torch.ones(len(boxes)), labels=(labels + shift) % len(CLASSES))
            metric.process({}, [dict(img_id=info['img_id'], ori_shape=(HEIGHT, WIDTH), pred_instances=predicted)])
        metrics = metric.evaluate(len(test_set))
        assert [metrics[f'lvis/{key}'] for key in KEYS] == [expected] * 4


def test_the_dial_and_compare_score_by_the_same_rules(parts, root):
    _, test_set, _ = parts
    truth = ground_truth(test_set)
    for shift, expected in ((0, 1.0), (1, 0.0)):
        found = [dict(image_id=one['image_id'], category_id=(one['category_id'] - 1 + shift) % len(CLASSES) + 1,
                      bbox=one['bbox'], score=1.0) for one in truth.dataset['annotations']]
        assert match_detections(truth, found).summary()['AP'] == expected
    absent = [dict(found[0], category_id=1), dict(found[0], category_id=2)]  # looked for and not there; not looked for
    assert scored_detections(truth, absent) == absent[:1]


def test_detectors_are_compared_with_intervals(trained, root):
    out, checkpoint = root / 'compared', str(root / 'work' / 'iter_4.pth')
    done = subprocess.run(
        [sys.executable, 'tools/analysis_tools/compare_detectors.py', '--detector', f'a={root / "reduced.py"}',
         checkpoint, '--detector', f'b={root / "reduced.py"}', checkpoint, '--settings', '1x10', '--quick',
         '--out-dir', str(out)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    text = (out / 'compare.md').read_text()
    assert 'no difference shown between a 1x10 and b 1x10: +0.0 AP' in text and 'lvis/bbox_APr' in text
    rows = [line for line in text.split('## By class')[1].split('##')[0].splitlines() if line.startswith('|')]
    assert len(rows) == 2 + 40 and f'of the 40 classes of {len(CLASSES)} in which detectors differ most' in text
    first, _ = json.loads((out / 'compare.json').read_text())['detectors']
    assert list(first['class_ap']) == list(CLASSES)
