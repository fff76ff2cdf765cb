"""Settings, points and words of the dial."""

import argparse
import importlib
import json
import os
import sys

import numpy as np
import pytest
import torch
from made_detections import made_detections, made_objects
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmdet.utils import register_all_modules
from mmengine.config import Config, DictAction

import mmcv_stand_in
from mmdet_diffusion.evaluation import pareto
from mmdet_diffusion.evaluation.average_precision import match_detections
from mmdet_diffusion.evaluation.content_key import code_digest, content_key, data_digest, weights_digest
from mmdet_diffusion.evaluation.detection_records import ImageDetections
from mmdet_diffusion.evaluation.dial_settings import CONTROLS, DialSetting, grid
from mmdet_diffusion.evaluation.ground_truth import coco_detections, ground_truth
from mmdet_diffusion.evaluation.other_metrics import is_coco_box_ap
from mmdet_diffusion.evaluation.pareto import Point
from mmdet_diffusion.testing import build_detector, small_model_cfg

POINTS = [Point('a', 10, 0.3, 0.2, 0.4), Point('b', 20, 0.5, 0.4, 0.6), Point('c', 30, 0.5, 0.4, 0.6),
          Point('d', 40, 0.4, 0.3, 0.5), Point('e', 50, 0.6, 0.5, 0.7)]


@pytest.fixture(autouse=True, scope='module')
def _scope():
    register_all_modules(init_default_scope=True)


def test_the_front_has_what_no_other_beats():
    assert [point.label for point in pareto.front(POINTS[::-1])] == ['a', 'b', 'e']


@pytest.mark.parametrize(('limit', 'best'), [(9, None), (10, 'a'), (45, 'b'), (60, 'e')])
def test_the_best_within_a_time_is_the_best_that_is_fast_enough(limit, best):
    found = pareto.best_within(POINTS, limit)
    assert (found and found.label) == best


def test_a_plot_is_written(tmp_path):
    pareto.draw(POINTS, tmp_path / 'dial.png', title='some')
    assert (tmp_path / 'dial.png').read_bytes().startswith(b'\x89PNG')


def test_a_grid_has_every_combination_once_and_no_change_that_the_config_has():
    settings = grid([(1, 10), (4, 10)], dict(eta=1.0, nms=dict(type='nms', iou_threshold=0.5)), eta=[0.0, 1.0],
                    nms=[0.5, 0.7], ensemble=[])
    assert [setting.label for setting in settings][:4] == ['1x10, eta 0.0', '1x10, eta 0.0, nms 0.7', '1x10',
                                                           '1x10, nms 0.7']
    assert len(settings) == 8
    assert settings[1].options() == ('model.test_cfg.sampling_timesteps=1 model.test_cfg.num_proposals=10 '
                                     'model.test_cfg.eta=0.0 model.test_cfg.nms.iou_threshold=0.7')


def test_a_value_that_holds_by_default_is_no_change():
    assert [setting.label for setting in grid([(1, 10)], {}, eta=[0.0, 1.0], start_noise=['random', 'even'])] == [
        '1x10, eta 0.0', '1x10, eta 0.0, start_noise even', '1x10', '1x10, start_noise even']


@pytest.mark.parametrize(('nms', 'tested', 'pasted'), [
    (dict(type='soft_nms', iou_threshold=0.5, min_score=0.1), dict(type='soft_nms', iou_threshold=0.6, min_score=0.1),
     'nms.iou_threshold=0.6'),
    (None, dict(type='nms', iou_threshold=0.6),
     'nms._delete_=True model.test_cfg.nms.type=nms model.test_cfg.nms.iou_threshold=0.6'),
])
def test_another_threshold_of_suppression_is_tested_as_it_is_pasted(nms, tested, pasted):
    changed, = grid([(1, 10)], dict(nms=nms), nms=[0.6])
    assert changed.values()['nms'] == tested and changed.options().endswith(f' model.test_cfg.{pasted}')
    config = Config(dict(model=dict(test_cfg=dict(nms=nms))))
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    config.merge_from_dict(parser.parse_args(['--cfg-options', *changed.options().split()]).cfg_options)
    assert config.model.test_cfg.nms == tested


def test_controls_are_of_settings_with_more_than_one_step():
    settings = grid([(1, 10), (4, 10)], {}, controls=True)
    assert [setting.control for setting in settings] == ['', '', *CONTROLS]
    assert settings[-1][:2] == (1, 40)
    changed = grid([(4, 10)], {}, eta=[0.0], controls=True)
    assert [setting.label for setting in changed[:2]] == ['4x10, eta 0.0', '4x10']  # which controls are compared with


@pytest.mark.parametrize('setting', [DialSetting(0, 10), DialSetting(1, 10, (('eta', 2.0), )),
                                     DialSetting(1, 10, (('ensemble', 'none'), ))])
def test_a_setting_out_of_range_is_named_before_anything_runs(setting):
    head = build_detector(small_model_cfg()).bbox_head
    with pytest.raises(ValueError, match='sampling_timesteps|eta|ensemble'):
        setting.check(head)


def test_code_of_a_user_and_the_operators_count(tmp_path, monkeypatch):
    (tmp_path / 'my_backbone.py').write_text('width = 1\n')
    monkeypatch.syspath_prepend(tmp_path)
    configs = [Config(dict(custom_imports=dict(imports=names))) for names in (['my_backbone'], 'my_backbone', [])]
    importlib.import_module('my_backbone')
    before = [code_digest(config) for config in configs]
    assert before[0] == before[1] != before[2]
    monkeypatch.setattr(mmcv_stand_in, 'is_active', lambda: before[0]['operators'] == 'compiled')
    assert code_digest(configs[0]) != before[0]
    monkeypatch.undo()
    (tmp_path / 'my_backbone.py').write_text('width = 2\n')
    assert code_digest(configs[0]) != before[0] and code_digest(configs[2]) == before[2]
    del sys.modules['my_backbone']


def test_a_key_is_of_content_and_not_of_order_or_place(tmp_path):
    assert content_key(dict(a=1, b=2)) == content_key(dict(b=2, a=1)) != content_key(dict(a=1, b=3))
    state = build_detector(small_model_cfg()).state_dict()
    other = build_detector(small_model_cfg(), seed=1).state_dict()
    assert weights_digest(state) == weights_digest(dict(reversed(state.items()))) != weights_digest(other)
    image = dict(img_id=1, img_path=str(tmp_path / '1.png'), instances=[dict(bbox=[0, 0, 2, 2], bbox_label=0)])
    elsewhere = dict(image, img_path='/elsewhere/1.png')
    assert data_digest([image]) == data_digest([elsewhere])
    (tmp_path / '1.png').write_bytes(b'some pixels')
    before = data_digest([image])
    assert before != data_digest([elsewhere])
    (tmp_path / '1.png').write_bytes(b'more pixels')
    os.utime(tmp_path / '1.png', (1, 1))  # some systems tell times apart by milliseconds alone
    assert data_digest([image]) != before
    assert data_digest([elsewhere]) != data_digest([dict(elsewhere, instances=[])])


@pytest.mark.parametrize(('evaluator', 'answer'), [
    (dict(type='CocoMetric', metric='bbox'), True), ([dict(type='mmdet.CocoMetric', metric=['bbox'])], True),
    (dict(type='CocoMetric', metric=['bbox', 'proposal']), False), (dict(type='VOCMetric'), False),
    (dict(type='CocoMetric', proposal_nums=[100, 300, 1000]), True),
    (dict(type='CocoMetric', proposal_nums=(100, 300, 8000)), False), (dict(type='CocoMetric', iou_thrs=[0.5]), False),
    ([dict(type='CocoMetric'), dict(type='CrowdHumanMetric')], False)])
def test_what_cocos_ap_does_not_say_is_left_to_the_evaluator(evaluator, answer):
    assert is_coco_box_ap(evaluator) is answer


def test_ap_of_a_data_set_is_that_of_its_metric(tmp_path):
    truth = made_objects(seed=3)
    # A category that is not used, other ids, and one object too thin for the data set, which CocoMetric counts.
    content = dict(truth.dataset, categories=[dict(id=10 * one['id'], name=one['name'])
                                              for one in truth.dataset['categories']] + [dict(id=99, name='other')])
    content['annotations'] = [dict(one, category_id=10 * one['category_id']) for one in content['annotations']]
    content['annotations'].append(dict(id=10**6, image_id=2, category_id=10, bbox=[5, 5, 0.5, 40], area=20, iscrowd=0))
    content['images'] = [dict(one, file_name=f'{one["id"]}.png') for one in content['images']]
    (tmp_path / 'a.json').write_text(json.dumps(content))
    classes = ('class 0', 'class 1', 'class 2')
    dataset = CocoDataset(ann_file=str(tmp_path / 'a.json'), metainfo=dict(classes=classes), pipeline=[],
                          data_prefix=dict(img=str(tmp_path)), test_mode=True)
    metric = CocoMetric(ann_file=str(tmp_path / 'a.json'))
    metric.dataset_meta = dataset.metainfo
    found, images = made_detections(truth, 3), []
    for place in range(len(dataset)):
        img_id = dataset.get_data_info(place)['img_id']
        mine = [one for one in found if one['image_id'] == img_id]
        boxes = np.array([one['bbox'] for one in mine], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        images.append(ImageDetections(boxes, np.array([one['score'] for one in mine], dtype=np.float32),
                                      np.array([one['category_id'] - 1 for one in mine], dtype=int), (0, 0)))
        instances = dict(zip(('bboxes', 'scores', 'labels'), map(torch.from_numpy, images[-1][:3]), strict=True))
        metric.process({}, [dict(img_id=img_id, ori_shape=(200, 200), pred_instances=instances)])
    expected = metric.evaluate(len(dataset))
    summary = match_detections(ground_truth(dataset), coco_detections(images)).summary()
    names = dict(AP='mAP', AP50='mAP_50', AP75='mAP_75', AP_small='mAP_s', AP_medium='mAP_m', AP_large='mAP_l')
    for name, theirs in names.items():
        assert summary[name] == pytest.approx(expected[f'coco/bbox_{theirs}'], abs=5.1e-4), name  # they round


class Crowd:
    """As CrowdHuman's: a region to be ignored has no class, and bodies reach past the edge."""

    metainfo = dict(classes=('person', 'other'))

    def __len__(self):
        return 1

    def get_data_info(self, place):
        return dict(img_path='a.jpg', width=100, height=80, instances=[
            dict(bbox=[-20, 10, 30, 90], bbox_label=0, ignore_flag=0),
            dict(bbox=[50, 10, 90, 70], bbox_label=-1, ignore_flag=1)])


def test_regions_without_a_class_are_ignored_for_each_and_boxes_end_at_the_picture():
    truth = ground_truth(Crowd())
    person, *ignored = truth.dataset['annotations']
    assert person['bbox'] == [0, 10, 30, 70] and person['area'] == 2100 and not person['iscrowd']
    assert [(one['category_id'], one['iscrowd']) for one in ignored] == [(1, 1), (2, 1)]
    detections = [dict(image_id=1, category_id=1, bbox=[55, 15, 20, 20], score=0.9),
                  dict(image_id=1, category_id=1, bbox=[0, 10, 30, 70], score=0.8)]
    assert match_detections(truth, detections).ap() == pytest.approx(1)


class NoImages:
    ann_file = 'a.json'

    def __len__(self):
        return 0


def test_a_set_without_images_is_named():
    with pytest.raises(ValueError, match='a.json has no image'):
        ground_truth(NoImages())
