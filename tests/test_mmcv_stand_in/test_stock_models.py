"""Models of MMDetection's own configs, made small: built, trained for a step and asked for detections."""

from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config

CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
NAMES = ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco', 'retinanet/retinanet_r50_fpn_1x_coco',
         'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco', 'deformable_detr/deformable-detr_r50_16xb2-50e_coco',
         'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco', 'atss/atss_r50_fpn_1x_coco',
         'dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco', 'dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco',
         'dyhead/atss_r50_fpn_dyhead_1x_coco')
WIDTHS = {2048: 64, 1024: 64, 256: 32, 128: 16}  # of layers; position codes have half the width of their layers


def narrow(value):
    """The same config with fewer channels."""
    if isinstance(value, dict):
        return type(value)({name: narrow(part) for name, part in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(map(narrow, value))
    return WIDTHS.get(value, value) if type(value) is int else value


def small_model(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py').model
    strides = {part: cfg[part].pop('anchor_generator') for part in ('bbox_head', 'rpn_head')
               if 'anchor_generator' in cfg.get(part, {})}
    backbone = cfg.pop('backbone')
    cfg = narrow(cfg)
    for part, generator in strides.items():
        cfg[part].anchor_generator = generator
    # Else each block begins as the identity, and no gradient reaches the deformable convolutions in it.
    cfg.backbone = dict(backbone, base_channels=4, stem_channels=4, init_cfg=None, zero_init_residual=False)
    neck = cfg.neck[0] if isinstance(cfg.neck, list) else cfg.neck
    neck.in_channels = [16, 32, 64, 128][-len(neck.in_channels):]
    if 'encoder' in cfg:
        cfg.num_queries, cfg.encoder.num_layers, cfg.decoder.num_layers = 12, 1, 2
        cfg.bbox_head.embed_dims = WIDTHS[256]
    elif cfg.type == 'SparseRCNN':
        cfg.rpn_head.num_proposals = 12
        cfg.roi_head.update(num_stages=2, stage_loss_weights=[1, 1], bbox_head=cfg.roi_head.bbox_head[:2])
        cfg.train_cfg.rcnn = cfg.train_cfg.rcnn[:2]
    register_all_modules(init_default_scope=True)
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()
    return model


@pytest.mark.parametrize('name', NAMES)
def test_a_stock_model_builds_trains_a_step_and_detects(name):
    model = small_model(name)
    batch = demo_mm_inputs(2, [[3, 128, 96], [3, 96, 128]], num_classes=80)
    data = model.data_preprocessor(batch, training=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert torch.isfinite(loss)
    gradients = {part: parameter.grad for part, parameter in model.named_parameters() if parameter.requires_grad}
    learning = {part for part, gradient in gradients.items() if gradient is not None and gradient.any()}
    assert any(part.startswith('backbone.layer4') for part in learning)
    assert ('conv_offset' in ' '.join(gradients)) == ('conv_offset' in ' '.join(learning))
    optimizer.step()

    model.eval()
    with torch.no_grad():
        samples = model(**model.data_preprocessor(batch, training=False), mode='predict')
    assert len(samples) == 2
    for sample in samples:
        found = sample.pred_instances
        assert len(found.bboxes) == len(found.scores) == len(found.labels)
        assert torch.isfinite(found.bboxes).all()
