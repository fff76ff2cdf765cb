"""Convert a checkpoint of the authors' DiffusionDet (detectron2 layout, ResNet + FPN) to this package's layout.

Example:
    python tools/model_converters/diffusiondet_to_mmdet.py diffdet_coco_res50.pth diffusiondet_r50_coco.pth
"""

import argparse
import os
import re
import sys
from pathlib import Path

import torch
from torch import Tensor

# Buffers of the noise schedule: computed anew, in float64, when the model is built.
SCHEDULE_BUFFERS = frozenset({
    'betas', 'alphas_cumprod', 'alphas_cumprod_prev', 'sqrt_alphas_cumprod', 'sqrt_one_minus_alphas_cumprod',
    'log_one_minus_alphas_cumprod', 'sqrt_recip_alphas_cumprod', 'sqrt_recipm1_alphas_cumprod', 'posterior_variance',
    'posterior_log_variance_clipped', 'posterior_mean_coef1', 'posterior_mean_coef2'
})
IMAGE_STATISTICS = frozenset({'pixel_mean', 'pixel_std'})  # they are in the config's data_preprocessor

# Blocks of each layer by whether the blocks are bottlenecks: ResNet-18, 34; 50, 101, 152.
RESNET_DEPTHS = {False: [(2, 2, 2, 2), (3, 4, 6, 3)], True: [(3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)]}

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


class ConversionError(Exception):
    """The source cannot be converted; the message says why and what to do."""


def read_state_dict(source: Path) -> dict[str, Tensor]:
    """Read a checkpoint without running any code that it may hold.

    Args:
        source (Path): a file of ``torch.save``: a state dict, or a dict with one under ``model``.

    Returns:
        dict[str, Tensor]: the state dict.

    Raises:
        ConversionError: if the file is missing, unsafe, or holds no state dict.
    """
    if not source.is_file():
        raise ConversionError(f'{source} is not a file')
    try:
        content = torch.load(source, map_location='cpu', weights_only=True)
    except Exception as error:
        # torch's own message is a page that ends in advice to switch the safety check off
        reason = 'it is empty' if not source.stat().st_size else type(error).__name__
        raise ConversionError(f"{source} cannot be read as tensors; expected one of the authors' checkpoints, "
                              f'whole and unchanged ({reason})') from error
    state = content.get('model', content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise ConversionError(f"{source} holds no state dict; expected one, or a dict with one under 'model'")
    return state


def convert_name(name: str) -> str | None:
    """Name of a parameter in this package's layout; None where the source's name is not known."""
    for convert in (_stage_name, _time_name, _fpn_name, _resnet_name):
        converted = convert(name)
        if converted is not None:
            return converted
    return None


def _stage_name(name: str) -> str | None:
    match = re.fullmatch(r'head\.head_series\.(\d+)\.(.+)', name)
    if match is None:
        return None
    stage, rest = match.groups()
    for part, converted in STAGE_PARTS.items():
        if rest.startswith(f'{part}.'):
            return f'bbox_head.stages.{stage}.{converted}{rest[len(part):]}'
    return None


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
    value = r'(weight|bias|running_mean|running_var)'
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


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a whole state dict.

    Args:
        state (dict[str, Tensor]): in the authors' layout.

    Returns:
        dict[str, Tensor]: in this package's layout; the recomputable buffers are left out.

    Raises:
        ConversionError: if a key is not known or a part of the model is missing; lists them.
    """
    converted, unknown = {}, []
    for name, value in state.items():
        if name in SCHEDULE_BUFFERS or name in IMAGE_STATISTICS:
            continue
        new_name = convert_name(name)
        if new_name is None:
            unknown.append(name)
        else:
            converted[new_name] = value
    if unknown:
        raise ConversionError(f'{len(unknown)} of {len(state)} keys are not of DiffusionDet with a ResNet and FPN in '
                              f"the authors' layout: {_some(unknown)}")
    missing = _missing(converted)
    if missing:
        raise ConversionError(f'the checkpoint lacks {len(missing)} tensors: {_some(missing)}')
    return converted


def _missing(converted: dict[str, Tensor]) -> list[str]:
    """Tensors that every model has and this one lacks: of all stages alike, of the FPN, of the time embedding."""
    stages = {}
    for name in converted:
        match = re.fullmatch(r'bbox_head\.stages\.(\d+)\.(.+)', name)
        if match:
            stages.setdefault(int(match[1]), set()).add(match[2])
    every_stage = set().union(*stages.values())
    wanted = {f'bbox_head.stages.{stage}.{part}' for stage in range(max(stages, default=0) + 1)
              for part in every_stage or {'fc_cls.weight'}}
    wanted |= {f'bbox_head.time_embedding.mlp.{layer}.{kind}' for layer in (0, 2) for kind in ('weight', 'bias')}
    wanted |= {f'neck.{convs}.{level}.conv.{kind}' for convs in ('lateral_convs', 'fpn_convs') for level in range(4)
               for kind in ('weight', 'bias')}
    wanted |= _wanted_of_resnet(converted)
    return sorted(wanted - set(converted))


def _wanted_of_resnet(converted: dict[str, Tensor]) -> set[str]:
    """Tensors of the stem, and of every block of the smallest ResNet that has all blocks of this one."""
    norm = ('weight', 'bias', 'running_mean', 'running_var')
    blocks = [re.match(r'backbone\.layer([1-4])\.(\d+)\.', name) for name in converted]
    found = {(int(match[1]), int(match[2])) for match in blocks if match}
    is_bottleneck = any('.conv3.' in name for name in converted if name.startswith('backbone.layer'))
    depths = next((depths for depths in RESNET_DEPTHS[is_bottleneck]
                   if all(block < depths[layer - 1] for layer, block in found)), RESNET_DEPTHS[is_bottleneck][-1])
    wanted = {'backbone.conv1.weight', *(f'backbone.bn1.{value}' for value in norm)}
    for layer, depth in enumerate(depths, start=1):
        for block in range(depth):
            prefix = f'backbone.layer{layer}.{block}.'
            parts = [(f'conv{n}', f'bn{n}') for n in ((1, 2, 3) if is_bottleneck else (1, 2))]
            if block == 0 and (is_bottleneck or layer > 1):
                parts.append(('downsample.0', 'downsample.1'))
            for conv, batch_norm in parts:
                wanted |= {f'{prefix}{conv}.weight', *(f'{prefix}{batch_norm}.{value}' for value in norm)}
    return wanted


def _some(names: list[str], limit: int = 8) -> str:
    return ', '.join(names[:limit]) + (f', ... ({len(names) - limit} more)' if len(names) > limit else '')


def write(state: dict[str, Tensor], destination: Path) -> None:
    """Save beside the destination and move into place, so that nothing half-written stays behind.

    Args:
        state (dict[str, Tensor]): in this package's layout.
        destination (Path): must not exist.

    Raises:
        ConversionError: if the destination exists or cannot be written.
    """
    if destination.exists():
        raise ConversionError(f'{destination} exists already; delete it or choose another name')
    temporary = destination.with_name(f'.{destination.name}.{os.getpid()}.tmp')  # with the user's own permissions
    try:
        with temporary.open('xb') as file:
            torch.save({'meta': {}, 'state_dict': state}, file)
        temporary.replace(destination)
    except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
        reason = getattr(error, 'strerror', None) or error
        raise ConversionError(f'{destination} cannot be written: {reason}') from error
    finally:
        temporary.unlink(missing_ok=True)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help="the authors' checkpoint")
    parser.add_argument('destination', type=Path, help='the file to write')
    args = parser.parse_args()
    try:
        state = convert(read_state_dict(args.source))
        write(state, args.destination)
    except ConversionError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(f'{args.destination}: {len(state)} tensors')
    return 0


if __name__ == '__main__':
    sys.exit(main())
