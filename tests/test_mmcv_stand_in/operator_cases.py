"""Inputs for mmcv's operators, made again from seeds, and what an operator gives on them: recorded, and compared."""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from mmcv import ops
from torch import Tensor

from mmdet_diffusion.testing import REPOSITORY

RECORDING = REPOSITORY / 'tests' / 'data' / 'operators' / 'mmcv_2.1.0_cpu.npz'
NUMBER_OF_SETS = 1000
SOFT_NMS_METHODS = ('naive', 'linear', 'gaussian')


class BoxSet(NamedTuple):
    """Boxes in absolute xyxy pixels (N, 4), scores (N,), and the settings of one call."""

    boxes: Tensor
    scores: Tensor
    iou_threshold: float
    offset: int


def box_sets() -> Iterator[BoxSet]:
    """Sets of up to 60 boxes: with equal scores, equal boxes, boxes without area, IoUs of just the threshold."""
    for seed in range(NUMBER_OF_SETS):
        random = np.random.RandomState(seed)
        number = seed if seed < 2 else random.randint(2, 61)
        corners, sides = random.randint(0, 24, (number, 2)), random.randint(0, 13, (number, 2))
        boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
        if seed % 2:
            boxes += random.random_sample(boxes.shape).astype(np.float32)
        if seed % 5 == 0:
            boxes[1::3] = boxes[:-1:3]
        scores = random.randint(1, 9, number) / np.float32(8) if seed % 3 else random.random_sample(number)
        yield BoxSet(torch.from_numpy(boxes), torch.from_numpy(scores.astype(np.float32)),
                     (0.3, 0.5, 0.7, 0.25)[seed % 4], (seed // 4) % 2)


def nms_indices(step: int = 1) -> Iterator[np.ndarray]:
    """Kept indices of each set, or of every ``step``-th."""
    for case in itertools.islice(box_sets(), 0, None, step):
        yield ops.nms(case.boxes, case.scores, case.iou_threshold, case.offset)[1].numpy()


def soft_nms_results() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Kept indices and lowered scores of each set, by a method in turn."""
    for case, method in zip(box_sets(), itertools.cycle(SOFT_NMS_METHODS)):  # noqa: B905
        dets, indices = ops.soft_nms(case.boxes, case.scores, case.iou_threshold, min_score=0.05, method=method,
                                     offset=case.offset)
        yield indices.numpy(), dets[:, 4].numpy()


def nms_match_groups() -> Iterator[np.ndarray]:
    """Groups of each set: the number of a group, then its indices, one group after the other."""
    for case in box_sets():
        groups = ops.nms_match(torch.cat([case.boxes, case.scores[:, None]], dim=1), case.iou_threshold)
        yield np.array([value for group in groups for value in (len(group), *group.tolist())], dtype=np.int64)


def tensor(random: np.random.RandomState, *shape: int, scale: float = 1.0) -> Tensor:
    """Standard normal numbers times ``scale``, float32."""
    return torch.from_numpy((random.standard_normal(shape) * scale).astype(np.float32))


def run(function: Callable[..., Tensor], *inputs: Tensor) -> list[np.ndarray]:
    """Result and, for weights drawn from a seed, the gradient of its weighted sum by each input."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    output = function(*leaves)
    output.backward(tensor(np.random.RandomState(7), *output.shape))
    return [value.detach().numpy() for value in (output, *(leaf.grad for leaf in leaves))]


def rois(random: np.random.RandomState, number: int = 24) -> Tensor:
    """Index of an image of two and a box, (number, 5): inside, outside, without area, of a pixel, of the whole map."""
    centres, sizes = random.uniform(-30, 150, (number, 2)), random.uniform(0, 90, (number, 2))
    sizes[:3] = [[0, 0], [0, 25], [8, 0]]
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
    boxes[3:6] = [[-500, -500, -400, -400], [16, 16, 24, 24], [0, 0, 120, 96]]
    return torch.from_numpy(np.concatenate([random.randint(0, 2, (number, 1)), boxes], axis=1).astype(np.float32))


ROI_ALIGN_CASES = list(itertools.product(('avg', 'max'), (True, False), (0, 2)))


def roi_align(mode: str, aligned: bool, sampling_ratio: int) -> list[np.ndarray]:
    """RoIAlign and its gradient by the features."""
    random = np.random.RandomState(11)
    features, boxes = tensor(random, 2, 3, 12, 15), rois(random)
    return run(lambda levels: ops.roi_align(levels, boxes, (3, 2), 0.125, sampling_ratio, mode, aligned), features)


# Stride, padding, dilation, groups, groups of offsets.
DEFORM_CONV_CASES = [((1, 1), (1, 1), (1, 1), 1, 1), ((2, 1), (1, 2), (1, 2), 2, 1), ((1, 2), (0, 1), (1, 1), 1, 2)]


def deform_conv(version: int, settings: tuple, offset_scale: float) -> list[np.ndarray]:
    """Deformable convolution and its gradients; no offsets at all put samples on cells and on the very border."""
    stride, padding, dilation, groups, deform_groups = settings
    random, kernel, size = np.random.RandomState(13), (3, 2), (9, 8)
    out = [(size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    images, weight = tensor(random, 2, 4, *size), tensor(random, 4, 4 // groups, *kernel)
    offset = tensor(random, 2, deform_groups * 12, *out, scale=offset_scale)
    if version == 1:
        return run(lambda *values: ops.deform_conv2d(*values, *settings), images, offset, weight)
    mask, bias = tensor(random, 2, deform_groups * 6, *out).sigmoid(), tensor(random, 4)
    return run(lambda *values: ops.modulated_deform_conv2d(*values, *settings), images, offset, mask, weight, bias)


def arithmetic_results() -> Iterator[tuple[str, list[np.ndarray]]]:
    """Name and results of each case of the operators that compute with floats."""
    for case in ROI_ALIGN_CASES:
        yield f'roi_align {case}', roi_align(*case)
    for version, settings, scale in itertools.product((1, 2), DEFORM_CONV_CASES, (0.0, 1.5)):
        yield f'deform_conv {version} {settings} {scale}', deform_conv(version, settings, scale)
