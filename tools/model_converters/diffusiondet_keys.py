"""Names of the authors' DiffusionDet (detectron2 layout: ResNet or Swin, FPN, head) and this package's for them."""

import re

from torch import Tensor

# What the model computes anew when it is built, in float64; the config's data_preprocessor has the image statistics
# and a LVIS config's federated loss its class frequencies.
DROPPED = frozenset({
    'betas', 'alphas_cumprod', 'alphas_cumprod_prev', 'sqrt_alphas_cumprod', 'sqrt_one_minus_alphas_cumprod',
    'log_one_minus_alphas_cumprod', 'sqrt_recip_alphas_cumprod', 'sqrt_recipm1_alphas_cumprod', 'posterior_variance',
    'posterior_log_variance_clipped', 'posterior_mean_coef1', 'posterior_mean_coef2', 'pixel_mean', 'pixel_std',
    'criterion.fed_loss_cls_weights'
})

STAGE_PARTS = {
    'self_attn': 'self_attn',
    'inst_interact.dynamic_layer': 'dynamic_conv.dynamic_layer',
    'inst_interact.norm1': 'dynamic_conv.norm_in',
    'inst_interact.norm2': 'dynamic_conv.norm_out',
    'inst_interact.out_layer': 'dynamic_conv.fc',
    'inst_interact.norm3': 'dynamic_conv.norm_fc',
    'linear1': 'ffn.0',
    'linear2': 'ffn.2',
    'norm1': 'norm_attn',
    'norm2': 'norm_dynamic',
    'norm3': 'norm_ffn',
    'block_time_mlp': 'time_mlp',
    'cls_module': 'cls_fcs',
    'reg_module': 'reg_fcs',
    'class_logits': 'fc_cls',
    'bboxes_delta': 'fc_reg',
}
SWIN_BLOCK_PARTS = {
    'norm1': 'norm1',
    'attn': 'attn.w_msa',
    'norm2': 'norm2',
    'mlp.fc1': 'ffn.layers.0.0',
    'mlp.fc2': 'ffn.layers.1',
}


class ConversionError(Exception):
    """The source cannot be converted; the message says why and what to do."""


def convert_name(name: str) -> str | None:
    """Name of a parameter in this package's layout; None where the source's name is not known."""
    for convert in (_stage_name, _time_name, _fpn_name, _resnet_name, _swin_name):
        converted = convert(name)
        if converted is not None:
            return converted
    return None


def convert_value(name: str, value: Tensor) -> Tensor:
    """Value of a parameter in this package's layout.

    Only Swin's patch merging differs. The original concatenates the four pixels of a patch column by column, each with
    its C channels; MMDetection unfolds the patch, which puts each channel's four pixels together, row by row. The norm
    comes before the reduction, so its 4 C channels move with the columns of the matrix.

    Args:
        name (str): in the authors' layout.
        value (Tensor): any shape; of a patch merging, 4 C values in the last dimension.

    Returns:
        Tensor: the same shape.

    Raises:
        ConversionError: if the values of a patch merging are not of patches of four pixels.
    """
    if not re.search(r'\.downsample\.(reduction|norm)\.', name):
        return value
    if not value.dim() or value.shape[-1] % 4:
        raise ConversionError(f'{name} has shape {tuple(value.shape)}; a patch merging has four times its channels in '
                              'the last dimension')
    by_column_row_channel = value.unflatten(-1, (2, 2, -1))
    return by_column_row_channel.transpose(-3, -1).flatten(-3).contiguous()


def _renamed(rest: str, parts: dict[str, str]) -> str | None:
    """``rest`` with its leading part renamed."""
    for part, converted in parts.items():
        if rest.startswith(f'{part}.'):
            return converted + rest[len(part):]
    return None


def _stage_name(name: str) -> str | None:
    match = re.fullmatch(r'head\.head_series\.(\d+)\.(.+)', name)
    part = match and _renamed(match[2], STAGE_PARTS)
    return part and f'bbox_head.stages.{match[1]}.{part}'


def _time_name(name: str) -> str | None:
    match = re.fullmatch(r'head\.time_mlp\.([13])\.(weight|bias)', name)
    return match and f'bbox_head.time_embedding.mlp.{int(match[1]) - 1}.{match[2]}'


def _fpn_name(name: str) -> str | None:
    match = re.fullmatch(r'backbone\.fpn_(lateral|output)([2-5])\.(weight|bias)', name)
    if match is None:
        return None
    convs = 'lateral_convs' if match[1] == 'lateral' else 'fpn_convs'
    return f'neck.{convs}.{int(match[2]) - 2}.conv.{match[3]}'


def _resnet_name(name: str) -> str | None:
    value = r'(weight|bias|running_mean|running_var|num_batches_tracked)'
    match = re.fullmatch(rf'backbone\.bottom_up\.stem\.conv1\.(norm\.)?{value}', name)
    if match:
        return f'backbone.{"bn1" if match[1] else "conv1"}.{match[2]}'
    match = re.fullmatch(rf'backbone\.bottom_up\.res([2-5])\.(\d+)\.(conv[123]|shortcut)\.(norm\.)?{value}', name)
    if match is None:
        return None
    layer, block, part, is_norm, value = match.groups()
    if part == 'shortcut':
        part = f'downsample.{1 if is_norm else 0}'
    elif is_norm:
        part = part.replace('conv', 'bn')
    return f'backbone.layer{int(layer) - 1}.{block}.{part}.{value}'


def _swin_name(name: str) -> str | None:
    match = re.fullmatch(r'backbone\.bottom_up\.layers\.([0-3])\.blocks\.(\d+)\.(.+)', name)
    if match:
        part = _renamed(match[3], SWIN_BLOCK_PARTS)
        return part and f'backbone.stages.{match[1]}.blocks.{match[2]}.{part}'
    match = re.fullmatch(r'backbone\.bottom_up\.layers\.([0-2])\.downsample\.(reduction|norm)\.(weight|bias)', name)
    if match:
        return f'backbone.stages.{match[1]}.downsample.{match[2]}.{match[3]}'
    match = re.fullmatch(r'backbone\.bottom_up\.(patch_embed\.proj|patch_embed\.norm|norm[0-3])\.(weight|bias)', name)
    return match and f'backbone.{match[1].replace("proj", "projection")}.{match[2]}'
