"""Metrics of any evaluator of MMDetection's from detections that were kept."""

from collections.abc import Sequence

import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData
from torch import nn
from torch.utils.data import DataLoader

from .detection_records import ImageDetections

PROPOSAL_NUMS = (100, 300, 1000)  # of MMDetection's CocoMetric, which takes AP at the first of them


def is_coco_box_ap(evaluator: dict | list[dict]) -> bool:
    """Whether an evaluator's config asks for nothing but COCO's AP of boxes, which the matches give."""
    parts = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    return all(part['type'].split('.')[-1] == 'CocoMetric' and part.get('metric', 'bbox') in ('bbox', ['bbox'])
               and tuple(part.get('proposal_nums', PROPOSAL_NUMS)) == PROPOSAL_NUMS and part.get('iou_thrs') is None
               for part in parts)


def evaluate_records(evaluator: dict | list[dict], model: nn.Module, loader: DataLoader,
                     records: Sequence[ImageDetections]) -> dict[str, float]:
    """Score detections as a test of MMDetection's would.

    Args:
        evaluator (dict | list[dict]): ``test_evaluator`` of a config.
        model (nn.Module): its ``data_preprocessor`` is used.
        loader (DataLoader): of the test set, in its order.
        records (Sequence[ImageDetections]): of its images.

    Returns:
        dict[str, float]: what the evaluator gives.
    """
    scorer = Evaluator(evaluator)
    scorer.dataset_meta = loader.dataset.metainfo
    place = 0
    for batch in loader:
        samples = model.data_preprocessor(batch, False)['data_samples']
        for sample in samples:
            found = records[place]
            sample.pred_instances = InstanceData(bboxes=torch.from_numpy(found.bboxes),
                                                 scores=torch.from_numpy(found.scores),
                                                 labels=torch.from_numpy(found.labels))
            place += 1
        scorer.process(data_samples=[sample.cpu() for sample in samples], data_batch=batch)
    return {name: float(value) for name, value in scorer.evaluate(place).items()}
