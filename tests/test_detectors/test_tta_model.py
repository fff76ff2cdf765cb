"""Test-time augmentation: what is kept of the views of an image, and how views are merged."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.structures import InstanceData

from mmdet_diffusion.detectors import DiffusionDetTTAModel
from mmdet_diffusion.launch import parse_known, with_tta_model
from mmdet_diffusion.testing import REPOSITORY, build_detector, data_sample, load_config, small_model_cfg

WIDTH, HEIGHT = 4000, 100
LARGE_NMS = dict(type='nms', iou_threshold=0.9)


def tta_model(tta_cfg=None, **test_cfg):
    cfg = small_model_cfg()
    cfg.test_cfg.update(test_cfg)
    return DiffusionDetTTAModel(build_detector(cfg), tta_cfg=tta_cfg)


def view(bboxes, scores, labels, flip=False):
    sample = data_sample(torch.zeros(0, 4), torch.zeros(0).long(), (HEIGHT, WIDTH), flip=flip,
                         flip_direction='horizontal' if flip else None)
    sample.pred_instances = InstanceData(bboxes=torch.as_tensor(bboxes).float(), scores=torch.as_tensor(scores).float(),
                                         labels=torch.as_tensor(labels))
    return sample


def two_views(number):
    """Boxes that do not touch; the second view is flipped and has boxes in the gaps of the first."""
    left = torch.arange(number) * 20.0
    bboxes = torch.stack([left, torch.zeros(number), left + 5, torch.full((number, ), 10.0)], dim=-1)
    scores = torch.linspace(0.9, 0.1, number)
    flipped = bboxes + torch.tensor([10.0, 0, 10.0, 0])
    flipped[:, [0, 2]] = WIDTH - flipped[:, [2, 0]]
    labels = torch.zeros(number).long()
    return [view(bboxes, scores, labels), view(flipped, scores - 0.01, labels, flip=True)]


def merged(model, views):
    return model.merge_preds([views])[0].pred_instances


@pytest.mark.parametrize(('number', 'test_cfg', 'tta_cfg', 'kept'), [
    (180, dict(), None, 300),  # of the config: 300 and not MMDetection's 100
    (180, dict(max_per_img=150), None, 150),
    (180, dict(max_per_img=-1), None, 360),
    (60, dict(), None, 120),
    (180, dict(max_per_img=150), dict(max_per_img=7), 7),
    (180, dict(max_per_img=150), dict(max_per_img=-1), 360),
    (180, dict(max_per_img=150), dict(nms=LARGE_NMS), 150),
])
def test_as_many_detections_are_kept_as_the_config_says_unless_tta_cfg_does(number, test_cfg, tta_cfg, kept):
    found = merged(tta_model(tta_cfg, **test_cfg), two_views(number))
    assert len(found) == kept
    assert (found.scores.diff() <= 0).all() and found.scores[0] == pytest.approx(0.9)


def test_a_change_of_test_cfg_holds_at_the_next_image():
    model = tta_model()
    model.module.bbox_head.test_cfg.max_per_img = 3
    assert len(merged(model, two_views(10))) == 3


@pytest.mark.parametrize(('test_cfg', 'tta_cfg', 'kept'), [
    (dict(), None, 1), (dict(nms=LARGE_NMS), None, 2), (dict(), dict(nms=LARGE_NMS), 2), (dict(nms=None), None, 2)])
def test_views_are_suppressed_by_the_nms_of_the_config_unless_tta_cfg_has_one(test_cfg, tta_cfg, kept):
    views = [view([[0.0, 0, 10, 10]], [0.5], [1]), view([[0.0, 0, 10, 8]], [0.6], [1])]
    found = merged(tta_model(tta_cfg, **test_cfg), views)
    assert found.scores.tolist() == pytest.approx([0.6, 0.5][:kept])


def test_a_flipped_view_is_turned_back():
    views = [view([[100.0, 0, 150, 50]], [0.5], [1]), view([[WIDTH - 150.0, 0, WIDTH - 100, 50]], [0.6], [1], True)]
    found = merged(tta_model(), views)
    assert found.bboxes.tolist() == [[100, 0, 150, 50]]


def test_neighbours_of_the_last_of_many_classes_are_not_rounded_into_one():
    bboxes = [[10.0, 10.0, 10.1, 10.1], [10.06, 10.06, 10.16, 10.16], [0.0, 0.0, 1333.0, 100.0]]
    views = [view(bboxes[:2], [0.9, 0.8], [1202, 1202]), view(bboxes[2:], [0.7], [1202])]
    assert len(merged(tta_model(), views)) == 3


def test_views_without_detections_give_none():
    nothing = (torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())
    found = merged(tta_model(), [view(*nothing), view(*nothing, flip=True)])
    assert found.bboxes.shape == (0, 4) and found.scores.shape == found.labels.shape == (0, )


@pytest.mark.parametrize(('tta_cfg', 'message'), [
    (dict(max_per_image=5), 'unknown key in tta_cfg: max_per_image; there are nms, max_per_img'),
    (dict(max_per_img=0), r'tta_cfg\.max_per_img must be an integer of at least 1, or -1 for no limit, got 0'),
    (dict(nms=dict(iou_thr=0.5)), r'tta_cfg\.nms must be'),
])
def test_a_wrong_tta_cfg_is_refused_when_the_model_is_built(tta_cfg, message):
    with pytest.raises(ValueError, match=message):
        tta_model(tta_cfg)


CONFIGS = sorted((REPOSITORY / 'configs' / 'diffusiondet').glob('*.py'))


@pytest.mark.parametrize('file', CONFIGS, ids=lambda file: file.stem)
def test_every_config_leaves_it_to_its_test_cfg_how_views_are_merged(file):
    assert Config.fromfile(file).tta_model == dict(type='DiffusionDetTTAModel')


def test_the_model_of_a_config_merges_views_by_its_test_cfg():
    cfg = load_config('diffusiondet_r50_fpn_8xb2-50k_crowdhuman.py')
    cfg.model.bbox_head.num_stages = 1
    model = MODELS.build(dict(cfg.tta_model, module=cfg.model))  # as mmdet's tools/test.py --tta puts them together
    assert model.merging_settings().max_per_img == 500
    assert model.merging_settings().nms == dict(type='nms', iou_threshold=0.5)


OPTION = 'tta_model.type=DiffusionDetTTAModel'


@pytest.mark.parametrize(('content', 'args', 'added'), [
    ('model = dict(type="DiffusionDet")', ['--tta'], ['--tta', '--cfg-options', OPTION]),
    ('model = dict(type="DiffusionDet")', ['--cfg-options', 'a=1', 'b=2', '--tta'],
     ['--cfg-options', OPTION, 'a=1', 'b=2', '--tta']),
    ('model = dict(type="DiffusionDet")', ['--cfg-options=a=1', '--tta'], ['--cfg-options', 'a=1', OPTION, '--tta']),
    ('model = dict(type="DiffusionDet")', [], []),
    ('model = dict(type="FCOS")', ['--tta'], ['--tta']),
    ('model = dict(type="DiffusionDet")\ntta_model = dict(type="DetTTAModel")', ['--tta'], ['--tta']),
])
def test_the_launcher_gives_a_config_without_one_our_model_under_tta(tmp_path, content, args, added):
    config = tmp_path / 'mine.py'
    config.write_text(content)
    found = with_tta_model([str(config), 'some.pth', *args])
    assert found == [str(config), 'some.pth', *added]
    options = parse_known(found).cfg_options
    assert ('tta_model.type' in options) == (OPTION in added) and ('a' in options) == ('a=1' in ''.join(args))
