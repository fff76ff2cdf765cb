"""What the tests share: small models, recordings of the authors' model, replayed draws."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .structures import PaddedObjects

REPOSITORY = Path(__file__).resolve().parents[1]


def load_tool(path: str) -> ModuleType:
    """Import a script of ``tools/`` by its path in there; it finds its neighbours as when it is run."""
    file = REPOSITORY / 'tools' / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    with mock.patch.object(sys, 'path', [str(file.parent), *sys.path]):
        spec.loader.exec_module(module)
    return module


def load_config(name: str) -> Config:
    """Read a config of ``configs/diffusiondet``, without the weights that it would download."""
    cfg = Config.fromfile(REPOSITORY / 'configs' / 'diffusiondet' / name)
    cfg.model.backbone.init_cfg = None
    return cfg


def small_model_cfg(*, num_classes: int = 3, num_proposals: int = 10, num_stages: int = 2, feat_channels: int = 16,
                    **head) -> ConfigDict:
    """A detector of the R50 config's structure that runs in milliseconds.

    Args:
        num_classes (int): C.
        num_proposals (int): N.
        num_stages (int): S.
        feat_channels (int): channels of neck and head.
        **head: further values of the head's config, merged into it.

    Returns:
        ConfigDict: of the model.
    """
    model = load_config('diffusiondet_r50_fpn_8xb2-450k_coco.py').model
    model.backbone.update(depth=18, base_channels=4, stem_channels=4)
    model.neck.update(in_channels=[4, 8, 16, 32], out_channels=feat_channels)
    model.bbox_head.update(num_classes=num_classes, num_proposals=num_proposals, num_stages=num_stages,
                           feat_channels=feat_channels)
    model.bbox_head.stage.update(num_attn_heads=4, feedforward_channels=32, dynamic_dim=4)
    model.bbox_head.roi_extractor.update(out_channels=feat_channels)
    merged = Config(dict(bbox_head=model.bbox_head))
    merged.merge_from_dict(dict(bbox_head=head))
    model.bbox_head = merged.bbox_head
    return model


def shrink_to_recorded_r50(model: ConfigDict) -> None:
    """Give the model of an R50 config the sizes of the recorded one (``tests/data/golden/mini_r50``), but its classes.

    Args:
        model (ConfigDict): is changed.
    """
    model.backbone.update(base_channels=8, stem_channels=8)
    model.neck.update(in_channels=[32, 64, 128, 256], out_channels=32)
    model.bbox_head.update(num_proposals=10, num_stages=3, feat_channels=32)
    model.bbox_head.stage.update(num_attn_heads=4, feedforward_channels=64, dynamic_dim=8)
    model.bbox_head.roi_extractor.update(out_channels=32)


def build_detector(model_cfg: ConfigDict, seed: int = 0) -> nn.Module:
    """Build and initialise a detector with given weights."""
    register_all_modules(init_default_scope=True)
    torch.manual_seed(seed)
    model = MODELS.build(model_cfg)
    model.init_weights()
    return model


def data_sample(gt_bboxes: Tensor, gt_labels: Tensor, img_shape: tuple[int, int], **meta) -> DetDataSample:
    """A data sample as a pipeline would give it.

    Args:
        gt_bboxes (Tensor): absolute xyxy in pixels, shape (num_gt, 4).
        gt_labels (Tensor): int64, shape (num_gt,).
        img_shape (tuple[int, int]): height, width.
        **meta: further meta information.

    Returns:
        DetDataSample: with ``gt_instances``.
    """
    meta = dict(dict(img_shape=img_shape, ori_shape=img_shape, scale_factor=(1.0, 1.0), img_id=0), **meta)
    sample = DetDataSample(metainfo=meta)
    sample.gt_instances = InstanceData(bboxes=gt_bboxes, labels=gt_labels)
    return sample


def random_boxes(number: int, img_shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Boxes within an image, absolute xyxy in pixels, shape (number, 4), sides of at least 2 pixels."""
    height, width = img_shape
    size = torch.tensor([width, height], dtype=torch.float32)
    sides = 2 + torch.rand((number, 2), generator=generator) * (size - 2)
    corner = torch.rand((number, 2), generator=generator) * (size - sides)
    return torch.cat([corner, corner + sides], dim=-1)


def single_image_objects(gt_bboxes: Tensor, gt_labels: Tensor, img_shape: tuple[int, int]) -> PaddedObjects:
    """One image's objects as a batch, without padding; an image without objects has one that is not valid."""
    height, width = img_shape
    whwh = torch.tensor([[width, height, width, height]], dtype=torch.float32)
    if not len(gt_labels):
        return PaddedObjects(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.long),
                             torch.zeros(1, 1, dtype=torch.bool), whwh)
    return PaddedObjects(gt_bboxes[None].float(), gt_labels[None], torch.ones_like(gt_labels, dtype=torch.bool)[None],
                         whwh)
