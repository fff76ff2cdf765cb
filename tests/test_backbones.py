"""The head on MMDetection's backbones and necks, and on those that do not fit it. Widths are small."""

import copy
import re
from operator import attrgetter

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import nn

from mmdet_diffusion.testing import REPOSITORY, build_detector, data_sample, random_boxes, small_model_cfg

DOCUMENT = REPOSITORY / 'docs' / 'backbones.md'
CHANNELS = 16
HEIGHT, WIDTH = 64, 96
FOUR, THREE = (4, 8, 16, 32), (8, 16, 32)

RESNET = dict(base_channels=8, stem_channels=8)
BASIC, BOTTLENECK = [8, 16, 32, 64], [32, 64, 128, 256]
HRNET = dict(
    stage1=dict(num_modules=1, num_branches=1, block='BOTTLENECK', num_blocks=(1, ), num_channels=(8, )),
    stage2=dict(num_modules=1, num_branches=2, block='BASIC', num_blocks=(1, 1), num_channels=(8, 16)),
    stage3=dict(num_modules=1, num_branches=3, block='BASIC', num_blocks=(1, 1, 1), num_channels=(8, 16, 32)),
    stage4=dict(num_modules=1, num_branches=4, block='BASIC', num_blocks=(1, 1, 1, 1), num_channels=(8, 16, 32, 64)))
SWIN = dict(type='SwinTransformer', embed_dims=16, num_heads=[1, 2, 4, 8], window_size=4)

# name: backbone, channels of its levels
BACKBONES = dict(
    resnet18=(dict(RESNET, type='ResNet', depth=18), BASIC),
    resnet50=(dict(RESNET, type='ResNet', depth=50), BOTTLENECK),
    resnet101=(dict(RESNET, type='ResNet', depth=101), BOTTLENECK),
    resnext50=(dict(RESNET, type='ResNeXt', depth=50, groups=4, base_width=16), BOTTLENECK),
    res2net50=(dict(RESNET, type='Res2Net', depth=50, scales=4, base_width=26), BOTTLENECK),
    resnest50=(dict(type='ResNeSt', depth=50, radix=2, reduction_factor=4, avg_down_stride=True, **RESNET), BOTTLENECK),
    regnetx_400mf=(dict(type='RegNet', arch='regnetx_400mf'), [32, 64, 160, 384]),
    hrnet=(dict(type='HRNet', extra=HRNET), [8, 16, 32, 64]),
    swin_tiny=(dict(SWIN, depths=[2, 2, 6, 2]), [16, 32, 64, 128]),
    swin_base=(dict(SWIN, depths=[2, 2, 18, 2]), [16, 32, 64, 128]),
    pvt=(dict(type='PyramidVisionTransformer', embed_dims=8, num_layers=[1, 1, 1, 1], pretrain_img_size=64),
         [8, 16, 40, 64]),
    pvtv2=(dict(type='PyramidVisionTransformerV2', embed_dims=8, num_layers=[2, 2, 2, 2]), [8, 16, 40, 64]),
    mobilenetv2=(dict(type='MobileNetV2', widen_factor=0.25), [8, 8, 24, 1280]),
    efficientnet_b0=(dict(type='EfficientNet', arch='b0', out_indices=(2, 3, 4, 5)), [24, 40, 112, 320]),
    cspnext=(dict(type='CSPNeXt', deepen_factor=1 / 3, widen_factor=0.125, out_indices=(2, 3, 4)), [32, 64, 128]),
    cspdarknet=(dict(type='CSPDarknet', deepen_factor=1 / 3, widen_factor=0.125, out_indices=(2, 3, 4)), [32, 64, 128]),
    darknet53=(dict(type='Darknet', depth=53, out_indices=(3, 4, 5)), [256, 512, 1024]),
)
BFP = dict(type='BFP', in_channels=CHANNELS, num_levels=4, refine_level=1, refine_type='conv')

# backbone, neck without its channels (a list: one after the other), strides of the levels that the head uses
PAIRS = [
    ('resnet18', dict(type='FPN', num_outs=4), FOUR),
    ('resnet18', dict(type='ChannelMapper'), FOUR),
    ('resnet18', dict(type='FPN', num_outs=5), FOUR),
    ('resnet18', dict(type='FPN', num_outs=5, add_extra_convs='on_output'), (4, 8, 16, 32, 64)),
    ('resnet50', dict(type='PAFPN', num_outs=4), FOUR),
    ('resnet50', dict(type='FPN', start_level=1, num_outs=3), THREE),
    ('resnet101', [dict(type='FPN', num_outs=4), BFP], FOUR),
    ('resnext50', dict(type='FPN', num_outs=4), FOUR),
    ('res2net50', dict(type='FPN', num_outs=4), FOUR),
    ('resnest50', dict(type='FPN', num_outs=4), FOUR),
    ('regnetx_400mf', dict(type='FPN', num_outs=4), FOUR),
    ('hrnet', dict(type='HRFPN', num_outs=4), FOUR),
    ('hrnet', dict(type='HRFPN', num_outs=5), (4, 8, 16, 32, 64)),
    ('hrnet', dict(type='HRFPN', num_outs=5), FOUR),
    ('swin_tiny', dict(type='FPN', num_outs=4), FOUR),
    ('swin_base', dict(type='PAFPN', num_outs=4), FOUR),
    ('pvt', dict(type='FPN', num_outs=4), FOUR),
    ('pvtv2', dict(type='FPN', num_outs=4), FOUR),
    ('mobilenetv2', dict(type='FPN', num_outs=4), FOUR),
    ('efficientnet_b0', dict(type='FPN', num_outs=4), FOUR),
    ('cspnext', dict(type='CSPNeXtPAFPN', num_csp_blocks=1), THREE),
    ('cspdarknet', dict(type='YOLOXPAFPN', num_csp_blocks=1), THREE),
    ('darknet53', dict(type='FPN', num_outs=3), THREE),
]


def neck_cfg(neck, in_channels):
    if isinstance(neck, list):
        first, *others = neck
        return [neck_cfg(first, in_channels), *others]
    return dict(neck, in_channels=in_channels, out_channels=CHANNELS)


def model_cfg(backbone, neck, strides, **backbone_options):
    cfg = small_model_cfg(num_proposals=6, num_stages=1, feat_channels=CHANNELS)
    backbone, in_channels = BACKBONES[backbone]
    cfg.backbone = dict(copy.deepcopy(backbone), **backbone_options)
    cfg.neck = neck_cfg(neck, in_channels)
    cfg.bbox_head.roi_extractor.featmap_strides = strides
    return cfg


def make_images():
    return torch.randn((2, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(1))


def make_samples():
    return [
        data_sample(random_boxes(2, (HEIGHT, WIDTH), torch.Generator().manual_seed(index)), torch.tensor([0, 2]),
                    (HEIGHT, WIDTH), img_id=index) for index in range(2)
    ]


def name_of(value):
    if isinstance(value, (dict, list)):
        parts = value if isinstance(value, list) else [value]
        return '_'.join(part['type'] + str(part.get('num_outs', '')) for part in parts)
    return value if isinstance(value, str) else f'{len(value)}_levels'


# What fits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('backbone', 'neck', 'strides'), PAIRS, ids=name_of)
def test_the_head_trains_and_predicts_on(backbone, neck, strides):
    model = build_detector(model_cfg(backbone, neck, strides)).train()
    losses = model.loss(make_images(), make_samples())
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    # Without any gradient at all, not even zeros, a parameter stops training on several GPUs.
    used = {name for name, gradient in gradients.items() if gradient is not None and gradient.isfinite().all()}
    assert set(gradients) - used == unused_parameters(neck, strides)
    stem = next(gradient for name, gradient in gradients.items() if name.startswith('backbone.'))
    assert stem.abs().sum() > 0
    for sample in model.eval().predict(make_images(), make_samples()):
        assert len(sample.pred_instances.scores)
        assert sample.pred_instances.bboxes.isfinite().all() and sample.pred_instances.scores.isfinite().all()


def unused_parameters(neck, strides):
    """Of an output past the last stride: HRFPN has a convolution for each, FPN pools."""
    if isinstance(neck, dict) and neck['type'] == 'HRFPN' and neck['num_outs'] > len(strides):
        return {f'neck.fpn_convs.{level}.conv.{kind}' for level in range(len(strides), neck['num_outs'])
                for kind in ('weight', 'bias')}
    return set()


def test_there_are_enough_backbones_and_necks():
    """As many as the documentation says."""
    types = {BACKBONES[backbone][0]['type'] for backbone, _, _ in PAIRS}
    necks = {part['type'] for _, neck, _ in PAIRS for part in (neck if isinstance(neck, list) else [neck])}
    text = DOCUMENT.read_text()
    assert {backbone for backbone, _, _ in PAIRS} == set(BACKBONES)
    for kind in types | necks:
        assert f'`{kind}`' in text, f'{kind} is tested and not named in {DOCUMENT.name}'


# What does not fit ----------------------------------------------------------------------------------------------------

FPN = dict(type='FPN', num_outs=4)

# What is wrong, what the message has to say, what it says to set.
WRONG = dict(
    strides=(dict(bbox_head=dict(roi_extractor=dict(featmap_strides=[8, 16, 32, 64]))),
             ['neck (FPN)', '4 levels of [16, 16, 16, 16] channels at strides [4, 8, 16, 32]',
              'featmap_strides [8, 16, 32, 64]', 'set bbox_head.roi_extractor.featmap_strides to [4, 8, 16, 32]'],
             dict(bbox_head=dict(roi_extractor=dict(featmap_strides=[4, 8, 16, 32])))),
    shifted_levels=(dict(neck=dict(start_level=1)),
                    ['neck (FPN)', 'at strides [8, 16, 32, 64]', 'featmap_strides [4, 8, 16, 32]',
                     'set bbox_head.roi_extractor.featmap_strides to [8, 16, 32, 64]'],
                    dict(bbox_head=dict(roi_extractor=dict(featmap_strides=[8, 16, 32, 64])))),
    too_few_levels=(dict(bbox_head=dict(roi_extractor=dict(featmap_strides=[4, 8, 16, 32, 64]))),
                    ['neck (FPN)', 'gives 4 levels', 'looks up 5 levels',
                     'set bbox_head.roi_extractor.featmap_strides to [4, 8, 16, 32]'],
                    dict(bbox_head=dict(roi_extractor=dict(featmap_strides=[4, 8, 16, 32])))),
    channels=(dict(neck=dict(out_channels=24)),
              ['neck (FPN)', '[24, 24, 24, 24] channels', 'levels of 16 channels',
               'set bbox_head.feat_channels and bbox_head.roi_extractor.out_channels to 24'],
              dict(bbox_head=dict(feat_channels=24, roi_extractor=dict(out_channels=24)))),
    neck_inputs=(dict(neck=dict(in_channels=[256, 512, 1024, 2048])),
                 ['backbone (ResNet)', '[8, 16, 32, 64] channels', 'neck.in_channels (FPN)', '[256, 512, 1024, 2048]'],
                 dict(neck=dict(in_channels=[8, 16, 32, 64]))),
)


def merged(cfg, *overrides):
    cfg = Config(dict(model=cfg))
    for override in overrides:
        cfg.merge_from_dict(dict(model=override))
    return cfg.model


@pytest.mark.parametrize('extractor', ['PyramidRoIExtractor', 'SingleRoIExtractor'])
@pytest.mark.parametrize('wrong', WRONG)
def test_what_does_not_fit_is_named_when_the_model_is_built_and_the_cure_helps(wrong, extractor):
    override, says, cure = WRONG[wrong]
    cfg = model_cfg('resnet18', FPN, FOUR)
    if extractor == 'SingleRoIExtractor':
        cfg.bbox_head.roi_extractor = dict(type=extractor, out_channels=CHANNELS, featmap_strides=FOUR,
                                           roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=2))
    with pytest.raises(ValueError) as error:
        MODELS.build(merged(cfg, override))
    for words in says:
        assert words in str(error.value)
    MODELS.build(merged(cfg, override, cure))


def test_a_backbone_without_a_neck_is_named_with_the_need_for_equal_channels():
    cfg = model_cfg('resnet18', FPN, FOUR)
    del cfg.neck
    with pytest.raises(ValueError, match=r'backbone \(ResNet\).*\[8, 16, 32, 64\] channels.*equal channels.*a neck'):
        MODELS.build(cfg)


def test_a_neck_that_gives_the_coarsest_level_first_is_refused_with_the_reason():
    cfg = model_cfg('darknet53', FPN, THREE)
    cfg.neck = dict(type='YOLOV3Neck', num_scales=3, in_channels=[1024, 512, 256], out_channels=[16, 16, 16])
    with pytest.raises(ValueError, match=r'neck \(YOLOV3Neck\).*strides \[32, 16, 8\].*finest level first'):
        MODELS.build(cfg)


def test_every_part_of_a_neck_of_several_parts_is_named():
    cfg = model_cfg('resnet18', [FPN, BFP], (8, 16, 32, 64))
    with pytest.raises(ValueError, match=r'neck \(FPN, BFP\)'):
        MODELS.build(cfg)


# A backbone that cannot be tried when it is built ---------------------------------------------------------------------


class PairsOnly(nn.Module):
    """Levels at strides 4, 8, 16, 32 of two images or more, as of a layer that fails on the image of the trial."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, CHANNELS, stride, stride) for stride in FOUR)

    def forward(self, images):
        if len(images) < 2:
            raise NotImplementedError('not for one image')
        return tuple(conv(images) for conv in self.convs)


@pytest.fixture
def pairs_only(monkeypatch):
    monkeypatch.setitem(MODELS.module_dict, 'PairsOnly', PairsOnly)
    cfg = model_cfg('resnet18', FPN, FOUR)
    cfg.backbone = dict(type='PairsOnly')
    del cfg.neck
    return cfg


@pytest.mark.parametrize('call', ['loss', 'predict', '_forward'])
def test_what_cannot_be_tried_at_build_is_refused_at_the_first_batch_with_the_same_words(pairs_only, call):
    pairs_only.bbox_head.roi_extractor.featmap_strides = [8, 16, 32, 64]
    model = MODELS.build(pairs_only)
    message = r'backbone \(PairsOnly\).*at strides \[4, 8, 16, 32\].*set bbox_head.roi_extractor.featmap_strides to'
    for _ in range(2):  # and at the second one
        with pytest.raises(ValueError, match=message):
            getattr(model, call)(make_images(), make_samples())


def test_what_cannot_be_tried_at_build_works_where_it_fits(pairs_only):
    model = MODELS.build(pairs_only)
    for height, width in ((HEIGHT, WIDTH), (75, 101)):  # the second one leaves part of a cell at every level
        losses = model.loss(make_images()[..., :height, :width], make_samples())
        assert all(value.isfinite() for value in losses.values())


def test_a_deformable_backbone_is_tried_too():
    cfg = model_cfg('resnet50', FPN, (8, 16, 32, 64), dcn=dict(type='DCNv2', deform_groups=1),
                    stage_with_dcn=(False, True, True, True))
    with pytest.raises(ValueError, match='neck .FPN.'):
        MODELS.build(cfg)


def test_the_trial_leaves_no_trace():
    """Weights, running statistics, modes and random state are as without it."""
    built = []
    for trial in (True, False):
        cfg = model_cfg('resnet18', FPN, FOUR)
        torch.manual_seed(0)
        if trial:
            built.append((MODELS.build(cfg), torch.get_rng_state()))
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr('mmdet_diffusion.detectors.diffusiondet.check_pyramid_at_build', lambda *args: 4)
                built.append((MODELS.build(cfg), torch.get_rng_state()))
    (tried, state), (plain, other_state) = built
    assert torch.equal(state, other_state)
    assert [module.training for module in tried.modules()] == [module.training for module in plain.modules()]
    for (name, one), (_, other) in zip(tried.state_dict().items(), plain.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
    assert all(parameter.grad is None and parameter.requires_grad for parameter in tried.parameters())


# The ways to write it that the documentation shows --------------------------------------------------------------------


@pytest.fixture(scope='module')
def shown(tmp_path_factory):
    """The python blocks of the document, each in the file that its first line names, beside the configs."""
    root = tmp_path_factory.mktemp('clone')
    (root / 'configs').symlink_to(REPOSITORY / 'configs')
    for name, code in re.findall(r'```python\n# (\w+\.py)\n(.*?)```', DOCUMENT.read_text(), flags=re.DOTALL):
        (root / name).write_text(code)
    return root


SHOWN = ['my_swin.py', 'my_cspnext.py', 'configs/diffusiondet/diffusiondet_pvtv2-b2_fpn_8xb2-450k_coco.py']


def test_every_python_block_of_the_document_is_run_here(shown):
    assert len(re.findall('```python', DOCUMENT.read_text())) == 2
    assert {path.name for path in shown.glob('*.py')} == set(SHOWN[:2])


@pytest.mark.parametrize('name', SHOWN)
def test_what_the_document_shows_trains_and_predicts(shown, name):
    cfg = Config.fromfile(shown / name)
    assert cfg.default_scope == 'mmdet' and cfg.train_cfg.max_iters == 450000
    cfg.model.backbone.init_cfg = None
    cfg.model.bbox_head.update(num_proposals=6, num_stages=1)
    model = build_detector(cfg.model).train()
    losses = model.loss(make_images(), make_samples())
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    with torch.no_grad():
        for sample in model.eval().predict(make_images(), make_samples()):
            assert len(sample.pred_instances.scores) and sample.pred_instances.bboxes.isfinite().all()


def test_the_head_written_from_scratch_is_the_one_of_the_paper(shown):
    """Defaults included: modules, their numbers and the settings of sampling, but for the strides."""
    heads = []
    for name in ('my_cspnext.py', 'configs/diffusiondet/diffusiondet_r50_fpn_8xb2-450k_coco.py'):
        model = Config.fromfile(shown / name).model
        heads.append(MODELS.build(dict(model.bbox_head, test_cfg=model.test_cfg)))
    ours, paper = heads
    assert str(ours) == str(paper)
    assert ours.sampling_settings() == paper.sampling_settings()
    for part in ('box_sampler.coder.signal_scale', 'box_sampler.padding', 'box_sampler.num_train_timesteps',
                 'criterion.assigner.weights', 'criterion.assigner.num_candidates', 'num_proposals',
                 'stages.0.prior_prob', 'roi_extractor.output_size', 'roi_extractor.sampling_ratio',
                 'roi_extractor.finest_scale',
                 'criterion.loss_cls.loss_weight', 'criterion.loss_cls.alpha', 'criterion.loss_cls.gamma',
                 'criterion.loss_bbox.loss_weight', 'criterion.loss_iou.loss_weight'):
        assert attrgetter(part)(ours) == attrgetter(part)(paper), part


# file: what the downloaded weights hold, the parameter that gets it
DOWNLOADS = {
    'my_swin.py': (dict(model={'patch_embed.proj.bias': torch.full((96, ), 7.0)}), 'patch_embed.projection.bias'),
    'my_cspnext.py': (dict(state_dict={'backbone.stem.0.bn.bias': torch.full((16, ), 7.0)}), 'stem.0.bn.bias'),
    SHOWN[2]: ({'patch_embed1.proj.bias': torch.full((64, ), 7.0)}, 'layers.0.0.projection.bias'),
}


@pytest.mark.parametrize('name', SHOWN)
def test_weights_at_a_full_url_reach_the_backbone(shown, name, monkeypatch):
    content, parameter = DOWNLOADS[name]
    asked = []
    monkeypatch.setattr('mmengine.runner.checkpoint.load_url', lambda url, **kwargs: asked.append(url) or content)
    cfg = Config.fromfile(shown / name).model.backbone
    backbone = MODELS.build(cfg)
    backbone.init_weights()
    assert asked == [cfg.init_cfg.checkpoint] and asked[0].startswith('https://')
    assert (backbone.get_parameter(parameter) == 7).all()
