"""What the tests of exports share: small detectors whose boxes move as those of trained ones do, and their folders."""

import pytest
import torch

for name in ('onnx', 'onnxruntime'):  # skips the files that import this one
    pytest.importorskip(name)

from mmdet_diffusion.deployment.onnx_export import write_export  # noqa: E402
from mmdet_diffusion.deployment.sampler_file import sampler_content  # noqa: E402
from mmdet_diffusion.testing import build_detector, load_config, small_model_cfg  # noqa: E402

COCO = 'diffusiondet_r50_fpn_8xb2-450k_coco.py'
CLASSES = ('first', 'second', 'third')
SWIN = dict(type='SwinTransformer', embed_dims=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), window_size=7,
            mlp_ratio=2, drop_path_rate=0.0)
PVT = dict(type='PyramidVisionTransformerV2', embed_dims=8, num_heads=(1, 2, 4, 8), num_layers=[1, 1, 1, 1],
           mlp_ratios=(2, 2, 2, 2), init_cfg=None)


def small_detector(backbone='r18', seed=0, **head):
    """A detector of the given backbone, in evaluation mode.

    As initialised, six stages of random boxes multiply rounding by thousands; trained ones move boxes by little.
    """
    cfg = small_model_cfg(**head)
    if backbone in ('swin', 'pvt'):
        cfg.backbone = dict(SWIN if backbone == 'swin' else PVT)
        cfg.neck.in_channels = [8, 16, 32, 64]
    elif backbone == 'lite0':
        cfg.backbone = dict(type='EfficientNetLite0')
        cfg.neck.in_channels = [24, 40, 112, 320]
    else:
        cfg.backbone.update(depth=int(backbone[1:]))
        if backbone != 'r18':
            cfg.neck.in_channels = [16, 32, 64, 128]
    detector = build_detector(cfg, seed)
    calm(detector)
    return detector.eval()


def calm(detector):
    """Let every stage move its boxes by little."""
    for stage in detector.bbox_head.stages:
        with torch.no_grad():
            stage.fc_reg.weight.normal_(std=0.01)
            stage.fc_reg.bias.normal_(std=0.01)


def config_of_tests(scale=(160, 96)):
    """COCO's config with a small resize."""
    config = load_config(COCO)
    config.test_pipeline[1].scale = scale
    config.test_dataloader.dataset.pipeline = config.test_pipeline
    return config


def export(detector, folder, unrolled=None, checkpoint='weights'):
    """Write a folder; gives it back."""
    folder.mkdir()
    content = sampler_content(config_of_tests(), detector, CLASSES, dict(name='weights.pth', sha256=checkpoint))
    write_export(detector, folder, content, unrolled)
    return folder
