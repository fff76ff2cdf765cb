"""Does what backbone and neck give fit the head? Seen when the model is built, by running them on a small image."""

import copy
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from ..roi_extractors import PyramidRoIExtractor, StockRoIExtractor

IMAGE_SIZE = 128  # pixels of the trial run: at least two cells at every usual stride, and some ten milliseconds


def check_pyramid_at_build(backbone: nn.Module, neck: nn.Module | None,
                           roi_extractor: PyramidRoIExtractor | StockRoIExtractor) -> int | None:
    """Compare the pyramid with what the head looks up, by a trial run.

    Args:
        backbone (nn.Module): takes images, gives levels.
        neck (nn.Module, optional): takes and gives levels.
        roi_extractor (PyramidRoIExtractor | StockRoIExtractor): of the head.

    Returns:
        int | None: number of levels. None where the trial run cannot tell, since a layer does not run where the model
        is built, or not on such an image: then the first batch has to be given to :func:`check_pyramid`.

    Raises:
        ValueError: see :func:`check_pyramid`; also if the neck does not take the channels that the backbone gives.
    """
    device = next((parameter.device for parameter in backbone.parameters()), None)
    feats = trial_run(backbone, torch.zeros((1, 3, IMAGE_SIZE, IMAGE_SIZE), device=device))
    if feats is not None and neck is not None:
        backbone_feats, feats = feats, trial_run(neck, feats)
        if feats is None:
            _check_neck_inputs(backbone, neck, [level.size(1) for level in backbone_feats])
    if feats is None:
        return None
    check_pyramid(feats, (IMAGE_SIZE, IMAGE_SIZE), roi_extractor, pyramid_source(backbone, neck))
    return len(feats)


@torch.no_grad()
def trial_run(module: nn.Module, inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Run a module as in testing and leave no trace in it: what runs is a copy that shares the weights.

    Args:
        module (nn.Module): gives levels.
        inputs (Tensor | tuple[Tensor, ...]): its one argument.

    Returns:
        tuple[Tensor, ...] | None: levels of shape (B, C_l, H_l, W_l); None where it does not run.
    """
    shared = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    try:
        twin = copy.deepcopy(module, shared)
        twin.eval()  # not chained: some of MMDetection's backbones return nothing here
        levels = twin(inputs)
    except Exception:  # whatever a layer of any package raises; if the model is at fault, real images show it again
        return None
    levels = tuple(levels) if isinstance(levels, (tuple, list)) else (levels, )
    return levels if all(isinstance(level, Tensor) and level.dim() == 4 for level in levels) else None


def check_pyramid(feats: Sequence[Tensor], image_shape: Sequence[int],
                  roi_extractor: PyramidRoIExtractor | StockRoIExtractor, source: str) -> None:
    """Compare levels with what the head looks up. Levels past its last stride are not looked at.

    Args:
        feats (Sequence[Tensor]): levels of shape (B, C_l, H_l, W_l).
        image_shape (Sequence[int]): height and width of the images that they were made from, in pixels.
        roi_extractor (PyramidRoIExtractor | StockRoIExtractor): of the head.
        source (str): who made the levels, for the message.

    Raises:
        ValueError: if there are too few levels, or their channels or strides are others; names what gives them, what
            they are and what to set.
    """
    strides, channels = list(roi_extractor.featmap_strides), roi_extractor.out_channels
    given_channels = [int(level.size(1)) for level in feats]
    given_strides = [round(image_shape[1] / int(level.size(3))) for level in feats]
    cures = []
    if set(given_channels[:len(strides)]) != {channels}:
        cures.append(_cure_of_channels(given_channels, channels))
    if len(feats) < len(strides) or not all(map(_has_stride, feats, strides, [image_shape] * len(strides))):
        cures.append(_cure_of_strides(given_strides))
    if cures:
        raise ValueError(f'the {source} gives {len(feats)} levels of {given_channels} channels at strides '
                         f'{given_strides}, but bbox_head.roi_extractor looks up {len(strides)} levels of {channels} '
                         f'channels at featmap_strides {strides}; {"; ".join(cures)}')


def pyramid_source(backbone: nn.Module, neck: nn.Module | None) -> str:
    """Who makes the levels, in words of the config: such as ``neck (FPN)``."""
    if neck is None:
        return f'backbone ({type(backbone).__name__})'
    parts = neck if isinstance(neck, nn.Sequential) else [neck]
    return f'neck ({", ".join(type(part).__name__ for part in parts)})'


def _has_stride(level: Tensor, stride: int, image_shape: Sequence[int]) -> bool:
    """Layers round up or down when they halve; however many there are, that adds up to less than one cell."""
    return all(abs(cells - pixels / stride) < 1 for cells, pixels in zip(map(int, level.shape[2:]), image_shape,
                                                                        strict=True))


def _cure_of_channels(given: list[int], wanted: int) -> str:
    if len(set(given)) > 1:
        return (f'the head needs equal channels at every level: use a neck that gives them, such as FPN or '
                f'ChannelMapper with out_channels={wanted}')
    return (f'set bbox_head.feat_channels and bbox_head.roi_extractor.out_channels to {given[0]}, or out_channels of '
            f'the neck to {wanted}')


def _cure_of_strides(given: list[int]) -> str:
    if given != sorted(set(given)):
        return 'the head needs levels whose strides grow: use a neck that gives the finest level first'
    return f'set bbox_head.roi_extractor.featmap_strides to {given}, or change out_indices of the backbone or the neck'


def _check_neck_inputs(backbone: nn.Module, neck: nn.Module, channels: list[int]) -> None:
    first = neck[0] if isinstance(neck, nn.Sequential) else neck
    taken = getattr(first, 'in_channels', None)
    if isinstance(taken, (tuple, list)) and sorted(taken) != sorted(channels):
        raise ValueError(f'the backbone ({type(backbone).__name__}) gives levels of {channels} channels, but '
                         f'neck.in_channels ({type(first).__name__}) is {list(taken)}; set it to {channels}')
