"""Every config parses, builds and runs; those of the paper hold the numbers of its recipe, here in one table."""

import functools
import json
import random
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, MODELS, TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from PIL import Image
from torch import nn

from mmdet_diffusion.testing import REPOSITORY, data_sample, load_config

FOLDER = REPOSITORY / 'configs' / 'diffusiondet'
NAMES = sorted(path.name for path in FOLDER.glob('*.py'))
COCO = 'diffusiondet_r50_fpn_8xb2-450k_coco.py'
NAME = re.compile(r'diffusiondet_[a-z0-9-]+_[a-z0-9-]+(_[a-z0-9.-]+)?_(\d+)xb(\d+)-([\d.]+)k_([a-z0-9-]+)'
                  r'(_test-[a-z0-9-]+)?\.py')
ONE_GPU = 'diffusiondet_r50_fpn_1xb4-180k_coco.py'
SHORT_SIDES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)


@pytest.fixture(autouse=True, scope='module')
def _scope():
    register_all_modules(init_default_scope=True)


# Every config ---------------------------------------------------------------------------------------------------------


def values_of(cfg) -> Iterator:
    """All values in nested dicts and lists."""
    if isinstance(cfg, dict):
        cfg = list(cfg.values())
    if not isinstance(cfg, (list, tuple)):
        yield cfg
        return
    for value in cfg:
        yield from values_of(value)


@functools.cache
def resolved(name):
    """The whole config as plain dicts, with its weights' addresses."""
    return Config.fromfile(FOLDER / name).to_dict()


def dataset_classes(cfg):
    """Classes of the data set inside its wrappers."""
    while 'dataset' in cfg:
        cfg = cfg.dataset
    metainfo = dict(DATASETS.get(cfg.type).METAINFO, **cfg.get('metainfo', {}))
    return metainfo['classes']


def test_there_are_configs():
    assert COCO in NAMES


@pytest.mark.parametrize('path', sorted((REPOSITORY / 'configs').rglob('*.py')), ids=lambda path: path.name)
def test_no_config_inherits_from_another_package(path):
    assert '::' not in path.read_text()


@pytest.mark.parametrize('name', NAMES)
def test_the_name_is_lower_case_and_says_batch_and_schedule(name):
    assert name == name.lower()
    assert NAME.fullmatch(name), name
    processes, batch, thousands = map(float, NAME.fullmatch(name).groups()[1:4])
    cfg = load_config(name)
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr.base_batch_size == (16 if name == ONE_GPU else processes * batch)
    assert cfg.train_cfg.max_iters == thousands * 1000
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters


@pytest.mark.parametrize('name', NAMES)
def test_any_mmdet_tool_finds_the_package(name):
    cfg = load_config(name)
    assert cfg.custom_imports == dict(imports=['mmdet_diffusion'], allow_failed_imports=False)
    assert cfg.default_scope == 'mmdet'
    assert cfg.default_hooks.dataset_check.type == 'DatasetCheckHook'


@pytest.mark.parametrize('name', NAMES)
def test_every_process_draws_its_own_noise(name):
    assert load_config(name).randomness.diff_rank_seed is True


@pytest.mark.parametrize('name', NAMES)
def test_weights_are_given_by_full_url(name):
    cfg = Config.fromfile(FOLDER / name)
    assert not [value for value in values_of(cfg.to_dict()) if isinstance(value, str) and re.match(
        r'(torchvision|open-mmlab|mmcls|openmmlab)://', value)]


@pytest.mark.parametrize('name', NAMES)
def test_the_head_has_as_many_classes_as_the_data(name):
    cfg = load_config(name)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert len(dataset_classes(loader.dataset)) == cfg.model.bbox_head.num_classes


@pytest.mark.parametrize('name', NAMES)
def test_a_config_builds_trains_and_predicts(name):
    cfg = load_config(name).model
    cfg.bbox_head.update(num_proposals=8, num_stages=2)
    if cfg.bbox_head.criterion.loss_cls.type == 'FederatedLoss':
        cfg.bbox_head.criterion.loss_cls.image_counts = [1] * cfg.bbox_head.num_classes
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    batch = dict(
        inputs=[torch.randint(256, (3, *shape), dtype=torch.uint8) for shape in ((64, 96), (80, 64))],
        data_samples=[
            data_sample(torch.tensor([[5.0, 5, 40, 40], [20, 20, 60, 60]]), torch.tensor([0, 0]), (64, 96), img_id=1),
            data_sample(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), (80, 64), img_id=2)
        ])
    losses = model.train()(**model.data_preprocessor(batch, training=True), mode='loss')
    assert {'loss_cls', 'd0.loss_bbox'} <= set(losses)
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    with torch.no_grad():
        results = model.eval()(**model.data_preprocessor(batch), mode='predict')
    for sample in results:
        assert len(sample.pred_instances.scores)
        assert sample.pred_instances.bboxes.isfinite().all()


# The recipe of the paper ----------------------------------------------------------------------------------------------

WARM_UP = dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=1000)
FOCAL = dict(type='FocalLoss', use_sigmoid=True, alpha=0.25, gamma=2.0, loss_weight=2.0)


def schedule(max_iters, *milestones):
    steps = dict(type='MultiStepLR', by_epoch=False, begin=0, end=max_iters, milestones=list(milestones), gamma=0.1)
    return {'train_cfg.max_iters': max_iters, 'param_scheduler': [WARM_UP, steps]}


RECIPE = {
    'all': {
        'optim_wrapper': dict(  # no mixed precision, no parameter-wise settings
            type='OptimWrapper', optimizer=dict(type='AdamW', lr=2.5e-5, weight_decay=1e-4),
            clip_grad=dict(max_norm=1.0, norm_type=2)),
        'train_cfg.type': 'ResumableTrainLoop',
        'auto_scale_lr': dict(enable=False, base_batch_size=16),
        'randomness.diff_rank_seed': True,
        'train_dataloader.batch_size': 2,
        'train_dataloader.sampler': dict(type='InfiniteSampler', shuffle=True),
        'train_dataloader.batch_sampler.type': 'AspectRatioBatchSampler',
        'model.data_preprocessor': dict(
            type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
            pad_size_divisor=32),
        'model.neck.type': 'FPN',
        'model.neck.out_channels': 256,
        'model.neck.num_outs': 4,
        'model.bbox_head.num_proposals': 500,
        'model.bbox_head.num_stages': 6,
        'model.bbox_head.feat_channels': 256,
        'model.bbox_head.prior_prob': 0.01,
        'model.bbox_head.box_sampler': dict(
            type='DiffusionBoxSampler', num_train_timesteps=1000, signal_scale=2.0, padding='gaussian'),
        'model.bbox_head.stage': dict(
            type='DynamicDiffusionStage', num_attn_heads=8, feedforward_channels=2048, dynamic_dim=64, num_cls_fcs=1,
            num_reg_fcs=3),
        'model.bbox_head.roi_extractor': dict(
            type='PyramidRoIExtractor', featmap_strides=[4, 8, 16, 32], out_channels=256, output_size=7,
            sampling_ratio=2),
        'model.bbox_head.criterion.assigner': dict(
            type='DynamicKAssigner', cls_weight=2.0, l1_weight=5.0, giou_weight=2.0, center_radius=2.5,
            num_candidates=5),
        'model.bbox_head.criterion.loss_bbox': dict(type='L1Loss', loss_weight=5.0),
        'model.bbox_head.criterion.loss_iou': dict(type='GIoULoss', loss_weight=2.0),
        'model.test_cfg': dict(
            num_proposals=None, sampling_timesteps=1, eta=1.0, renewal_score_thr=0.5, ensemble='all', score_thr=0.0,
            nms=dict(type='nms', iou_threshold=0.5), max_per_img=300, min_bbox_size=0, seed=None),
    },
    'r50': {
        'model.backbone': dict(
            type='ResNet', depth=50, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1,
            norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True, style='pytorch',
            init_cfg=dict(type='Pretrained', checkpoint='https://download.pytorch.org/models/resnet50-0676ba61.pth')),
        'model.neck.in_channels': [256, 512, 1024, 2048],
    },
    'r101': {
        'model.backbone': dict(
            type='ResNet', depth=101, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1,
            norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True, style='pytorch',
            init_cfg=dict(type='Pretrained', checkpoint='https://download.pytorch.org/models/resnet101-63fe2227.pth')),
        'model.neck.in_channels': [256, 512, 1024, 2048],
    },
    'swin-b': {
        'model.backbone': dict(
            type='SwinTransformer', pretrain_img_size=224, embed_dims=128, depths=[2, 2, 18, 2],
            num_heads=[4, 8, 16, 32], window_size=7, mlp_ratio=4, qkv_bias=True, drop_rate=0.0, attn_drop_rate=0.0,
            drop_path_rate=0.3, patch_norm=True, use_abs_pos_embed=False, out_indices=(0, 1, 2, 3), frozen_stages=-1,
            convert_weights=True,
            init_cfg=dict(type='Pretrained', checkpoint='https://github.com/SwinTransformer/storage/releases/download/'
                          'v1.0.0/swin_base_patch4_window7_224_22k.pth')),
        'model.neck.in_channels': [128, 256, 512, 1024],
    },
    'coco': {
        **schedule(450000, 350000, 420000),
        'model.bbox_head.num_classes': 80,
        'model.bbox_head.criterion.loss_cls': FOCAL,
        'train_dataloader.dataset.type': 'CocoDataset',
        'train_dataloader.dataset.ann_file': 'annotations/instances_train2017.json',
        'train_dataloader.dataset.filter_cfg': dict(filter_empty_gt=False, min_size=0),
        'test_dataloader.dataset.ann_file': 'annotations/instances_val2017.json',
        'test_evaluator.type': 'CocoMetric',
    },
    'lvis': {
        **schedule(270000, 210000, 250000),
        'model.bbox_head.num_classes': 1203,
        'model.bbox_head.criterion.loss_cls': dict(
            type='FederatedLoss', loss=FOCAL, image_counts='data/lvis_v1/annotations/lvis_v1_train.json',
            num_sampled_classes=50, power=0.5),
        'train_dataloader.dataset.type': 'ClassBalancedDataset',
        'train_dataloader.dataset.oversample_thr': 1e-3,
        'train_dataloader.dataset.dataset.type': 'LVISV1Dataset',
        'train_dataloader.dataset.dataset.ann_file': 'annotations/lvis_v1_train.json',
        'train_dataloader.dataset.dataset.filter_cfg': dict(filter_empty_gt=False, min_size=0),
        'test_dataloader.dataset.ann_file': 'annotations/lvis_v1_val.json',
        'test_evaluator.type': 'LVISMetric',
    },
    # What follows departs from the paper, and only in this.
    'pvtv2-b2': {
        'model.backbone': dict(
            type='PyramidVisionTransformerV2', embed_dims=64, num_layers=[3, 4, 6, 3],
            init_cfg=dict(checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth')),
        'model.neck.in_channels': [64, 128, 320, 512],
    },
    '300 proposals': {'model.bbox_head.num_proposals': 300},
    'fine-tuning': {
        'train_cfg.max_iters': 5000,
        'param_scheduler': [
            dict(WARM_UP, end=200),
            dict(type='MultiStepLR', by_epoch=False, begin=0, end=5000, milestones=[3500, 4500], gamma=0.1)
        ],
        'load_from': 'checkpoints/diffusiondet_r50_coco.pth',
        'model.backbone': dict(
            type='ResNet', depth=50, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1,
            norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True, style='pytorch', init_cfg=None),
        'model.neck.in_channels': [256, 512, 1024, 2048],
        'model.bbox_head.num_classes': 2,
        'model.bbox_head.criterion.loss_cls': FOCAL,
        'optim_wrapper': dict(
            type='OptimWrapper', optimizer=dict(type='AdamW', lr=2.5e-5, weight_decay=1e-4),
            clip_grad=dict(max_norm=1.0, norm_type=2), paramwise_cfg=dict(custom_keys=dict(fc_cls=dict(lr_mult=10)))),
        'auto_scale_lr': dict(enable=False, base_batch_size=4),
        'train_dataloader.batch_size': 4,
        'default_hooks.checkpoint_report': dict(type='CheckpointReportHook'),
    },
    'one GPU': {**schedule(180000, 140000, 168000), 'train_dataloader.batch_size': 4},
    'crowdhuman': {
        **schedule(50000, 39000, 46500),
        'model.bbox_head.num_classes': 1,
        'model.bbox_head.criterion.loss_cls': FOCAL,
        'model.test_cfg': dict(
            num_proposals=None, sampling_timesteps=1, eta=1.0, renewal_score_thr=0.5, ensemble='all', score_thr=0.0,
            nms=dict(type='nms', iou_threshold=0.5), max_per_img=500, min_bbox_size=0, seed=None),
        'train_dataloader.dataset.type': 'CrowdHumanDataset',
        'train_dataloader.dataset.ann_file': 'annotation_train.odgt',
        'train_dataloader.dataset.filter_cfg': dict(filter_empty_gt=False, min_size=0),
        'test_dataloader.dataset.ann_file': 'annotation_val.odgt',
        'test_evaluator.metric': ['AP', 'MR', 'JI'],
    },
    'tested on crowdhuman': {
        'model.test_cfg': dict(
            num_proposals=None, sampling_timesteps=1, eta=1.0, renewal_score_thr=0.5, ensemble='all', score_thr=0.0,
            nms=dict(type='nms', iou_threshold=0.5), max_per_img=8000, min_bbox_size=0, seed=None),
        'val_dataloader.dataset.ann_file': 'annotations/instances_val2017.json',
        'test_dataloader.dataset.data_root': 'data/crowdhuman/',
        'test_dataloader.dataset.ann_file': 'annotations/val_visible.json',
        'test_evaluator.ann_file': 'data/crowdhuman/annotations/val_visible.json',
        'test_evaluator.metric_items': ['mAP_50'],
        'test_evaluator.proposal_nums': (100, 300, 8000),
    },
}
SWIN = 'diffusiondet_swin-b-p4-w7-in22k_fpn'
PARTS_OF_RECIPE = {
    COCO: ('r50', 'coco'),
    'diffusiondet_r50_fpn_300-proposals_8xb2-450k_coco.py': ('r50', 'coco', '300 proposals'),
    'diffusiondet_r101_fpn_8xb2-450k_coco.py': ('r101', 'coco'),
    f'{SWIN}_8xb2-450k_coco.py': ('swin-b', 'coco'),
    'diffusiondet_pvtv2-b2_fpn_8xb2-450k_coco.py': ('pvtv2-b2', 'coco'),
    'diffusiondet_r50_fpn_8xb2-270k_lvis-v1.py': ('r50', 'lvis'),
    'diffusiondet_r101_fpn_8xb2-270k_lvis-v1.py': ('r101', 'lvis'),
    f'{SWIN}_8xb2-270k_lvis-v1.py': ('swin-b', 'lvis'),
    ONE_GPU: ('r50', 'coco', 'one GPU'),
    'diffusiondet_r50_fpn_finetune_1xb4-5k_custom.py': ('fine-tuning', ),
    'diffusiondet_r50_fpn_8xb2-50k_crowdhuman.py': ('r50', 'crowdhuman'),
    'diffusiondet_r50_fpn_8xb2-450k_coco_test-crowdhuman.py': ('r50', 'coco', 'tested on crowdhuman'),
}
SMALL = {name for name in NAMES if '_r18_' in name or '-lite0_' in name}  # models with a recipe of their own


def value_at(cfg, key):
    for part in key.split('.'):
        cfg = cfg[part]
    return cfg


def test_every_config_but_the_small_ones_is_in_the_table():
    assert set(PARTS_OF_RECIPE) == set(NAMES) - SMALL


@pytest.mark.parametrize('name', PARTS_OF_RECIPE)
def test_a_config_has_every_value_of_the_recipe(name):
    expected = {}
    for part in ('all', *PARTS_OF_RECIPE[name]):
        expected |= RECIPE[part]
    found = {key: value_at(resolved(name), key) for key in expected}
    assert {key: value for key, value in found.items() if value != expected[key]} == {}


@pytest.mark.parametrize('name', PARTS_OF_RECIPE)
def test_all_images_pass_through_the_pipelines_of_coco(name):
    cfg, coco = resolved(name), resolved(COCO)
    train_set = cfg['train_dataloader']['dataset']
    assert train_set.get('dataset', train_set)['pipeline'] == coco['train_dataloader']['dataset']['pipeline']
    for loader in ('val_dataloader', 'test_dataloader'):
        assert cfg[loader]['dataset']['pipeline'] == coco[loader]['dataset']['pipeline']


@pytest.mark.parametrize('name', PARTS_OF_RECIPE)
def test_no_weights_are_averaged(name):
    assert not [hook for hook in resolved(name).get('custom_hooks', []) if 'EMA' in hook['type']]


def only(pipeline, kind):
    """The one transform of this type in a pipeline."""
    transform, = [transform for transform in pipeline if transform['type'] == kind]
    return transform


def test_the_coco_training_pipeline_is_that_of_the_recipe():
    pipeline = load_config(COCO).train_dataloader.dataset.pipeline
    assert only(pipeline, 'LoadImageFromFile').imdecode_backend == 'pillow'
    assert only(pipeline, 'RandomFlip').prob == 0.5
    choice = only(pipeline, 'RandomChoice')
    assert choice.get('prob') in (None, [0.5, 0.5])
    (plain, ), (first, crop, last) = choice.transforms
    for resize in (plain, last):
        assert sorted(map(tuple, resize.scales)) == [(side, 1333) for side in SHORT_SIDES]
    assert [min(scale) for scale in first.scales] == [400, 500, 600]
    assert min(max(scale) for scale in first.scales) >= 100_000  # without any bound, for an image of any shape
    for resize in (plain, first, last):
        assert (resize.type, resize.keep_ratio, resize.backend) == ('RandomChoiceResize', True, 'pillow')
    assert (crop.type, crop.crop_type, tuple(crop.crop_size)) == ('RandomCrop', 'absolute_range', (384, 600))
    assert crop.allow_negative_crop is True


def test_the_coco_test_pipeline_is_that_of_the_recipe():
    for loader in ('val_dataloader', 'test_dataloader'):
        pipeline = load_config(COCO)[loader].dataset.pipeline
        assert only(pipeline, 'LoadImageFromFile').imdecode_backend == 'pillow'
        resize = only(pipeline, 'Resize')
        assert (tuple(resize.scale), resize.keep_ratio, resize.backend) == ((1333, 800), True, 'pillow')


@pytest.fixture(scope='module')
def r50():
    """The whole R50 model, but for the number of its stages."""
    cfg = load_config(COCO).model
    cfg.bbox_head.num_stages = 2
    return MODELS.build(cfg).train()


def test_one_learning_rate_and_weight_decay_for_all_parameters(r50):
    optimizer = build_optim_wrapper(r50, load_config(COCO).optim_wrapper).optimizer
    groups = optimizer.param_groups
    assert {(group['lr'], group['weight_decay']) for group in groups} == {(2.5e-5, 1e-4)}
    assert type(optimizer) is torch.optim.AdamW
    held = {id(parameter) for group in groups for parameter in group['params']}
    assert held >= {id(parameter) for parameter in r50.parameters() if parameter.requires_grad}


def test_every_batch_norm_is_frozen_with_its_affine_parameters(r50):
    norms = [module for module in r50.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 53
    assert not any(norm.training for norm in norms)
    assert not any(parameter.requires_grad for norm in norms for parameter in norm.parameters())


def test_stem_and_first_stage_are_frozen_and_the_other_convolutions_learn(r50):
    learning = {name.split('.')[0] for name, parameter in r50.backbone.named_parameters() if parameter.requires_grad}
    assert learning == {'layer2', 'layer3', 'layer4'}
    for module in (r50.backbone.layer2, r50.backbone.layer3, r50.backbone.layer4, r50.neck):
        assert all(conv.weight.requires_grad for conv in module.modules() if isinstance(conv, nn.Conv2d))


def test_the_stride_is_in_the_three_by_three_convolution(r50):
    assert r50.backbone.layer2[0].conv1.stride == (1, 1)
    assert r50.backbone.layer2[0].conv2.stride == (2, 2)


@pytest.fixture(scope='module')
def swin():
    """Swin-B with one stage of the head."""
    cfg = load_config(f'{SWIN}_8xb2-450k_coco.py').model
    cfg.bbox_head.num_stages = 1
    return MODELS.build(cfg).train()


def test_nothing_of_swin_is_frozen_and_each_of_its_four_outputs_has_a_norm(swin):
    assert all(parameter.requires_grad for parameter in swin.parameters())
    assert [getattr(swin.backbone, f'norm{level}').normalized_shape for level in range(4)] == [
        (128, ), (256, ), (512, ), (1024, )]


def test_swin_drops_paths_at_rates_from_0_to_three_tenths_and_adds_no_absolute_position(swin):
    rates = [block.ffn.dropout_layer.drop_prob for stage in swin.backbone.stages for block in stage.blocks]
    assert len(rates) == 24
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.3, 24))
    assert swin.backbone.patch_embed.norm is not None
    assert not hasattr(swin.backbone, 'absolute_pos_embed')


def test_one_learning_rate_and_weight_decay_for_the_norms_and_biases_of_swin_too(swin):
    groups = build_optim_wrapper(swin, load_config(f'{SWIN}_8xb2-450k_coco.py').optim_wrapper).optimizer.param_groups
    assert {(group['lr'], group['weight_decay']) for group in groups} == {(2.5e-5, 1e-4)}
    assert sum(len(group['params']) for group in groups) == len(list(swin.parameters()))


def test_the_learning_rate_warms_up_over_a_thousand_iterations():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    warm_up = PARAM_SCHEDULERS.build(dict(load_config(COCO).param_scheduler[0], optimizer=optimizer))
    factors = []
    for _ in range(1100):
        factors.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        warm_up.step()
    assert factors[0] == pytest.approx(0.01)
    assert factors[500] == pytest.approx(0.505, abs=2e-3)
    assert factors[998] < 1 and factors[1000:] == [pytest.approx(1.0)] * 100


# The COCO pipelines on a made set -------------------------------------------------------------------------------------

WIDTH, HEIGHT = 640, 480
FULL, CORNER, EMPTY, CROWD = range(4)
OBJECTS = {  # of each image: x, y, width, height; the last of CROWD is a crowd
    FULL: [[200, 150, 240, 160]],
    CORNER: [[2, 2, 8, 8]],
    EMPTY: [],
    CROWD: [[300, 200, 80, 60], [100, 100, 200, 200]],
}


@pytest.fixture(scope='module')
def coco_root(tmp_path_factory):
    """Four black images of 640 x 480 pixels with white objects."""
    root = tmp_path_factory.mktemp('coco')
    images, annotations = [], []
    for number, boxes in OBJECTS.items():
        pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        for x, y, width, height in boxes[:1]:
            pixels[y:y + height, x:x + width] = 255
        Image.fromarray(pixels).save(root / f'{number}.png')
        images.append(dict(id=number, file_name=f'{number}.png', width=WIDTH, height=HEIGHT))
        annotations += [
            dict(id=10 * number + index, image_id=number, category_id=1, bbox=box, area=box[2] * box[3],
                 iscrowd=int(index > 0)) for index, box in enumerate(boxes)
        ]
    categories = [dict(id=1, name='person')]
    (root / 'objects.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return root


def build_dataset(loader, root):
    cfg = load_config(COCO)[loader].dataset
    cfg.update(data_root=str(root), ann_file='objects.json', data_prefix=dict(img=''), serialize_data=False)
    return DATASETS.build(cfg)


@pytest.fixture(scope='module')
def train_set(coco_root):
    return build_dataset('train_dataloader', coco_root)


def branch_pipeline(branch):
    """The training pipeline with one of its two branches always taken."""
    transforms = []
    for transform in load_config(COCO).train_dataloader.dataset.pipeline:
        transforms += transform.transforms[branch] if transform.type == 'RandomChoice' else [transform]
    return Compose(transforms)


def run(pipeline, dataset, index, seed):
    random.seed(seed)
    np.random.seed(seed)
    return pipeline(dataset.get_data_info(index))


def test_images_without_objects_stay_in_the_training_set(train_set):
    assert len(train_set) == len(OBJECTS)


@pytest.mark.parametrize('branch', [0, 1])
@pytest.mark.parametrize('index', OBJECTS)
def test_training_images_have_an_allowed_short_side_and_at_most_1333_pixels(train_set, branch, index):
    pipeline = branch_pipeline(branch)
    sides = set()
    for seed in range(12):
        results = run(pipeline, train_set, index, seed)
        shape = results['data_samples'].img_shape
        assert results['inputs'].shape == (3, *shape) and results['inputs'].dtype == torch.uint8
        assert min(shape) in SHORT_SIDES and max(shape) <= 1333
        sides.add(min(shape))
        assert (max(shape) == round(min(shape) * WIDTH / HEIGHT)) or branch == 1
    assert len(sides) > 3


def test_crops_of_384_to_600_pixels_are_cut_from_images_of_400_500_or_600(train_set, monkeypatch):
    from mmdet.datasets.transforms import RandomCrop
    transform, seen = RandomCrop.transform, []

    def recording(self, results):
        before = results['img'].shape[:2]
        results = transform(self, results)
        seen.append((before, results['img'].shape[:2]))
        return results

    monkeypatch.setattr(RandomCrop, 'transform', recording)
    pipeline = branch_pipeline(1)
    for seed in range(20):
        run(pipeline, train_set, FULL, seed)
    assert {min(before) for before, _ in seen} == {400, 500, 600}
    for before, after in seen:
        assert all(384 <= side <= min(whole, 600) for side, whole in zip(after, before, strict=True))
    assert len({after for _, after in seen}) > 10


@pytest.mark.parametrize('branch', [0, 1])
def test_boxes_follow_their_objects_through_flips_crops_and_resizes(train_set, branch):
    pipeline = branch_pipeline(branch)
    for seed in range(10):
        results = run(pipeline, train_set, FULL, seed)
        bright = (results['inputs'].float().mean(0) > 127).nonzero()
        (top, left), (bottom, right) = bright.min(0).values, bright.max(0).values + 1
        box, = results['data_samples'].gt_instances.bboxes.tensor
        torch.testing.assert_close(box, torch.stack([left, top, right, bottom]).float(), atol=2, rtol=0)


def test_images_are_flipped_half_of_the_time(train_set):
    pipeline = branch_pipeline(0)
    flipped = [run(pipeline, train_set, CORNER, seed)['data_samples'].flip for seed in range(60)]
    assert 15 < sum(flipped) < 45


def test_images_with_an_empty_crop_survive(train_set):
    pipeline = branch_pipeline(1)
    counts = []
    for seed in range(20):
        results = run(pipeline, train_set, CORNER, seed)
        assert results is not None
        counts.append(len(results['data_samples'].gt_instances))
    assert set(counts) == {0, 1}


def test_a_sliver_that_a_crop_leaves_is_dropped_and_its_image_survives():
    sliver = HorizontalBoxes(torch.tensor([[100.0, 50.0, 100.005, 90.0]]))
    transform = TRANSFORMS.build(only(load_config(COCO).train_dataloader.dataset.pipeline, 'FilterAnnotations'))
    results = transform(dict(gt_bboxes=sliver, gt_bboxes_labels=np.zeros(1), gt_ignore_flags=np.zeros(1, dtype=bool)))
    assert results is not None and len(results['gt_bboxes']) == len(results['gt_bboxes_labels']) == 0


@pytest.mark.parametrize('branch', [0, 1])
def test_images_without_objects_survive(train_set, branch):
    results = run(branch_pipeline(branch), train_set, EMPTY, seed=0)
    assert len(results['data_samples'].gt_instances) == 0
    assert results['data_samples'].gt_instances.bboxes.tensor.shape == (0, 4)


def test_crowds_are_no_objects(train_set):
    results = run(branch_pipeline(0), train_set, CROWD, seed=0)
    assert len(results['data_samples'].gt_instances) == 1
    assert len(results['data_samples'].ignored_instances) == 1


def test_both_branches_are_taken_equally_often(train_set, monkeypatch):
    from mmdet.datasets.transforms import RandomCrop
    crops = []
    transform = RandomCrop.transform
    monkeypatch.setattr(RandomCrop, 'transform', lambda self, results: crops.append(1) or transform(self, results))
    for seed in range(60):
        run(train_set.pipeline, train_set, EMPTY, seed)
    assert 15 < len(crops) < 45


def test_the_training_set_gives_what_the_loss_takes(train_set, r50):
    """From files to losses, as a data loader would collate; images made small to be quick."""
    batch = [run(train_set.pipeline, train_set, index, seed=1) for index in (FULL, EMPTY)]
    data = dict(inputs=[item['inputs'] for item in batch], data_samples=[item['data_samples'] for item in batch])
    data = r50.data_preprocessor(data, training=True)
    height, width = data['inputs'].shape[-2:]
    assert height % 32 == 0 and width % 32 == 0
    feats = tuple(torch.randn(2, 256, height // stride // 4, width // stride // 4) for stride in (4, 8, 16, 32))
    losses = r50.bbox_head.loss(feats, data['data_samples'])
    assert all(value.isfinite() for value in losses.values())


def test_test_images_are_decoded_and_resized_by_pillow_to_the_bit(coco_root):
    dataset = build_dataset('test_dataloader', coco_root)
    results = dataset[FULL]
    with Image.open(coco_root / f'{FULL}.png') as image:
        expected = np.asarray(image.convert('RGB').resize((1067, 800), Image.Resampling.BILINEAR))
    rgb = results['inputs'].flip(0).permute(1, 2, 0).numpy()
    assert np.array_equal(rgb, expected)
    assert results['data_samples'].img_shape == (800, 1067)
    assert results['data_samples'].ori_shape == (HEIGHT, WIDTH)


def test_the_network_sees_rgb(coco_root, r50, tmp_path):
    Image.new('RGB', (64, 64), (255, 0, 0)).save(tmp_path / 'red.png')
    load = load_config(COCO).train_dataloader.dataset.pipeline[0]
    pixels = Compose([load])(dict(img_path=str(tmp_path / 'red.png')))['img']
    inputs = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    inputs = r50.data_preprocessor(dict(inputs=[inputs], data_samples=None))['inputs']
    expected = torch.tensor([(255 - 123.675) / 58.395, -116.28 / 57.12, -103.53 / 57.375])
    torch.testing.assert_close(inputs[0, :, 32, 32], expected)
