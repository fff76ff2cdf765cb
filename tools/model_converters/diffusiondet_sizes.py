"""Sizes of a DiffusionDet, read from its tensors: which tensors belong to it, and which config fits."""

import mmdet_diffusion  # noqa: F401  isort: skip  first: it makes the operators of mmcv available
import re
from collections.abc import Iterable
from math import ceil
from typing import NamedTuple

import torch
from diffusiondet_keys import ConversionError
from mmdet.models import FPN, ResNet, SwinTransformer
from mmdet.models.backbones.resnet import Bottleneck
from torch import Size, Tensor, nn

from mmdet_diffusion.heads import DynamicDiffusionStage
from mmdet_diffusion.layers import TimeEmbedding

SWIN_DEPTHS = ((2, 2, 2, 2), (2, 2, 6, 2), (2, 2, 18, 2))  # from the smallest on


class ModelSizes(NamedTuple):
    """What distinguishes one DiffusionDet from another as far as tensors show it.

    Attributes:
        backbone (dict): config of the backbone.
        backbone_channels (tuple[int, ...]): of its four levels.
        stage (dict): config of a stage, without the number of attention heads, which no tensor shows.
        num_stages (int): S.
    """

    backbone: dict
    backbone_channels: tuple[int, ...]
    stage: dict
    num_stages: int


# The released models, by the parts of their configs' names.
RESNET = dict(type='ResNet', stem_channels=64, base_channels=64)
BACKBONES = {
    'r50': dict(RESNET, depth=50),
    'r101': dict(RESNET, depth=101),
    'swin-b-p4-w7-in22k': dict(
        type='SwinTransformer', embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window_size=7),
}
SCHEDULES = {80: '8xb2-450k_coco', 1203: '8xb2-270k_lvis-v1'}
STAGE = dict(feat_channels=256, num_bins=49, feedforward_channels=2048, dynamic_dim=64, num_cls_fcs=1, num_reg_fcs=3)
NUM_STAGES = 6


def suggested_configs(sizes: ModelSizes) -> list[str]:
    """Names of the configs in ``configs/diffusiondet`` that fit, the likeliest first; none where no config does."""
    backbone = next((name for name, cfg in BACKBONES.items() if cfg == sizes.backbone), None)
    num_classes = sizes.stage['num_classes']
    known = dict(STAGE, num_classes=num_classes) == sizes.stage and sizes.num_stages == NUM_STAGES
    if backbone is None or num_classes not in SCHEDULES or not known:
        return []
    options = ['', '300-proposals_'] if (backbone, num_classes) == ('r50', 80) else ['']  # tensors know no proposals
    return [f'diffusiondet_{backbone}_fpn_{option}{SCHEDULES[num_classes]}' for option in options]


def _shape(shapes: dict[str, Size], name: str, num_dims: int) -> Size:
    """Shape of a tensor that shows a size, which must be there and have so many dimensions."""
    if name not in shapes:
        raise ConversionError(f'the checkpoint lacks {name}')
    if len(shapes[name]) != num_dims or 0 in shapes[name]:
        raise ConversionError(f'{name} has shape {tuple(shapes[name])} instead of {num_dims} dimensions')
    return shapes[name]


def read_sizes(shapes: dict[str, Size]) -> ModelSizes:
    """Find the sizes of a model.

    Args:
        shapes (dict[str, Size]): shape of each tensor, by this package's names.

    Returns:
        ModelSizes: of the smallest known model that has all layers of this one.

    Raises:
        ConversionError: if a tensor that shows a size is missing, or has not as many dimensions as it should.
    """
    first = 'bbox_head.stages.0.'
    backbone, channels = read_backbone(shapes)
    num_classes, feat_channels = _shape(shapes, first + 'fc_cls.weight', 2)
    stage = dict(
        num_classes=num_classes,
        feat_channels=feat_channels,
        num_bins=_shape(shapes, first + 'dynamic_conv.fc.weight', 2)[1] // feat_channels,
        feedforward_channels=_shape(shapes, first + 'ffn.0.weight', 2)[0],
        dynamic_dim=_shape(shapes, first + 'dynamic_conv.norm_in.weight', 1)[0],
        # linear, norm and activation make one layer
        num_cls_fcs=ceil(_count(shapes, r'bbox_head\.stages\.\d+\.cls_fcs\.(\d+)\.') / 3),
        num_reg_fcs=ceil(_count(shapes, r'bbox_head\.stages\.\d+\.reg_fcs\.(\d+)\.') / 3))
    return ModelSizes(backbone, channels, stage, _count(shapes, r'bbox_head\.stages\.(\d+)\.'))


def read_backbone(shapes: dict[str, Size]) -> tuple[dict, tuple[int, ...]]:
    """Config of the backbone, and channels of its four levels; arguments and errors as of :func:`read_sizes`."""
    is_swin = any(name.startswith(('backbone.stages.', 'backbone.patch_embed.')) for name in shapes)
    return (_swin_sizes if is_swin else _resnet_sizes)(shapes)


def _count(names: Iterable[str], pattern: str) -> int:
    """One more than the highest number that the pattern finds; 0 where it finds none."""
    return max((int(match[1]) + 1 for match in (re.match(pattern, name) for name in names) if match), default=0)


def _smallest(known: Iterable[tuple], found: list[int]) -> tuple:
    """The first of the known depths, from the smallest on, that has all blocks found; else the largest."""
    known = list(known)
    return next((depths for depths in known if all(a <= b for a, b in zip(found, depths, strict=True))), known[-1])


def _resnet_sizes(shapes: dict[str, Size]) -> tuple[dict, tuple[int, ...]]:
    found = [_count(shapes, rf'backbone\.layer{layer}\.(\d+)\.') for layer in (1, 2, 3, 4)]
    is_bottleneck = any(re.match(r'backbone\.layer\d\.\d+\.conv3\.', name) for name in shapes)
    known = {depths: depth for depth, (block, depths) in ResNet.arch_settings.items()
             if (block is Bottleneck) == is_bottleneck}
    base_channels = _shape(shapes, 'backbone.layer1.0.conv1.weight', 4)[0]
    cfg = dict(type='ResNet', depth=known[_smallest(known, found)], base_channels=base_channels,
               stem_channels=_shape(shapes, 'backbone.conv1.weight', 4)[0])
    expansion = Bottleneck.expansion if is_bottleneck else 1
    return cfg, tuple(base_channels * expansion * 2**level for level in range(4))


def _swin_sizes(shapes: dict[str, Size]) -> tuple[dict, tuple[int, ...]]:
    found = [_count(shapes, rf'backbone\.stages\.{stage}\.blocks\.(\d+)\.') for stage in range(4)]
    tables = [_shape(shapes, f'backbone.stages.{stage}.blocks.0.attn.w_msa.relative_position_bias_table', 2)
              for stage in range(4)]
    embed_dims = _shape(shapes, 'backbone.patch_embed.projection.weight', 4)[0]
    # a window of M pixels a side has (2 M - 1) ** 2 relative positions
    window_size = (round(tables[0][0]**0.5) + 1) // 2
    cfg = dict(type='SwinTransformer', embed_dims=embed_dims, depths=_smallest(SWIN_DEPTHS, found),
               num_heads=tuple(num_heads for _, num_heads in tables), window_size=window_size)
    return cfg, tuple(embed_dims * 2**level for level in range(4))


def expected_shapes(sizes: ModelSizes) -> dict[str, Size]:
    """Shape of each tensor that a model of these sizes has, by name, read from its parts, which this builds.

    The counters of batch norm are left out, as mmengine does when it loads a checkpoint.
    """
    feat_channels = sizes.stage['feat_channels']
    parts = {'backbone': build_backbone(sizes.backbone)}
    with torch.device('meta'):  # shapes alone, which takes no time (Swin cannot be built so)
        parts['neck'] = FPN(list(sizes.backbone_channels), feat_channels, num_outs=4)
        parts['bbox_head.time_embedding'] = TimeEmbedding(feat_channels)
        parts['bbox_head.stages'] = nn.ModuleList(
            DynamicDiffusionStage(**sizes.stage, prior_prob=0.01, num_attn_heads=1) for _ in range(sizes.num_stages))
    return shapes_of({f'{prefix}.{name}': value for prefix, part in parts.items()
                      for name, value in part.state_dict().items()})


def build_backbone(cfg: dict) -> nn.Module:
    """Build a backbone of a config as :func:`read_backbone` gives it."""
    cfg = dict(cfg)
    return dict(ResNet=ResNet, SwinTransformer=SwinTransformer)[cfg.pop('type')](**cfg)


def shapes_of(state: dict[str, Tensor]) -> dict[str, Size]:
    """Shape of each tensor, without the counters of batch norm."""
    return {name: value.shape for name, value in state.items() if not name.endswith('num_batches_tracked')}


def differences(shapes: dict[str, Size], expected: dict[str, Size]) -> list[str]:
    """What tensors differ in from the expected ones, one sentence without its subject for each kind."""
    missing = [name for name in expected if name not in shapes]
    extra = [name for name in shapes if name not in expected]
    other = [f'{name} {tuple(shapes[name])} instead of {tuple(shape)}' for name, shape in expected.items()
             if name in shapes and shapes[name] != shape]
    found = {'lacks {} tensors: {}': missing, 'has {} tensors too many: {}': extra, 'differs in {} shapes: {}': other}
    return [sentence.format(len(names), list_names(names)) for sentence, names in found.items() if names]


def list_names(names: Iterable[str], limit: int = 50) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    return ', '.join(names[:limit]) + (f', ... ({len(names) - limit} more)' if len(names) > limit else '')
