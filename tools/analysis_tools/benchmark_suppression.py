"""Post-processing of one image with many classes: one call of NMS for all of them, or one for each that is present."""

import mmdet_diffusion  # noqa: F401  isort: skip  first: it makes the operators of mmcv available
import importlib
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple
from unittest import mock

import torch
from benchmark_models import Sizes, object_boxes
from mmcv.ops import batched_nms
from torch import Tensor

from mmdet_diffusion import post_processing
from mmdet_diffusion.sampling_settings import SamplingSettings
from mmdet_diffusion.structures import Detections

NMS = dict(type='nms', iou_threshold=0.5)


class Suppression(NamedTuple):
    """Two ways to the same detections.

    Attributes:
        ours (Callable): the package's post-processing.
        by_class (Callable): the same, with a call of NMS for each class that is present.
        calls (int): of mmcv's operator by the first.
        calls_by_class (int): by the second.
    """

    ours: Callable[[], object]
    by_class: Callable[[], object]
    calls: int
    calls_by_class: int


def suppression(sizes: Sizes, num_classes: int, steps: int, device: torch.device) -> Suppression:
    """Post-processing of the detections of all steps on one image; every class is as likely as any.

    Args:
        sizes (Sizes): of the image, and number of boxes of a step.
        num_classes (int): C.
        steps (int): whose detections are joined.
        device (torch.device): of the detections.

    Returns:
        Suppression: see there.

    Raises:
        RuntimeError: if the two do not keep the same detections.
    """
    generator, number = torch.Generator().manual_seed(7), steps * sizes.boxes
    found = Detections(object_boxes(number, sizes.image, generator), torch.rand(number, generator=generator),
                       torch.randint(num_classes, (number, ), generator=generator))
    found = Detections(*(values.to(device) for values in found))
    meta = dict(img_shape=sizes.image, scale_factor=(1.0, 1.0))
    settings = SamplingSettings(num_proposals=sizes.boxes, nms=NMS)
    ours = partial(post_processing.finish_image, found, meta, settings, True)

    def by_class() -> object:
        with mock.patch.object(post_processing, 'class_wise_nms', class_by_class):
            return ours()

    results, calls = zip(*map(counted, (ours, by_class)), strict=True)
    if not torch.equal(results[0].bboxes, results[1].bboxes):
        raise RuntimeError('suppression by one call and class by class keep different boxes')
    return Suppression(ours, by_class, *calls)


def class_by_class(bboxes: Tensor, scores: Tensor, labels: Tensor, nms: dict) -> tuple[Tensor, Tensor]:
    """As :func:`post_processing.class_wise_nms`, with a call for each class."""
    kept_scores, kept_indices = [], []
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        kept, indices = batched_nms(bboxes[members], scores[members], members, nms, class_agnostic=True)
        kept_scores.append(kept[:, 4])
        kept_indices.append(members[indices])
    scores, order = torch.cat(kept_scores).sort(descending=True, stable=True)
    return scores, torch.cat(kept_indices)[order]


def counted(run: Callable[[], object]) -> tuple[object, int]:
    """Result of a run and how often it called mmcv's NMS."""
    with count_calls() as calls:
        result = run()
    return result, len(calls)


@contextmanager
def count_calls():
    """One entry for each call of mmcv's NMS inside."""
    module, calls = importlib.import_module('mmcv.ops.nms'), []
    operator = module.nms
    with mock.patch.object(module, 'nms', lambda *args, **kwargs: calls.append(None) or operator(*args, **kwargs)):
        yield calls
