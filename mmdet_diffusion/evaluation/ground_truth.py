"""The objects of a data set in the form that pycocotools takes."""

import contextlib
import io
from collections.abc import Sequence

from mmdet.datasets import CocoDataset, LVISV05Dataset, LVISV1Dataset
from mmengine.dataset import BaseDataset
from pycocotools.coco import COCO

from .average_precision import FEDERATED
from .detection_records import ImageDetections


def ground_truth(dataset: BaseDataset) -> COCO:
    """Objects of a data set. Image ids are places in the data set from 1, category ids are labels from 1.

    Of a data set in COCO's format areas are those of the file, else of the boxes, cut at the edges of the picture as
    detections are; ignored objects count as crowds.
    Images of LVIS say which classes were looked for, as in its files: see :func:`match_detections`.

    Raises:
        ValueError: if it has no image.
    """
    if not len(dataset):
        raise ValueError(f'{getattr(dataset, "ann_file", type(dataset).__name__)} has no image to test on')
    from_file = isinstance(dataset, CocoDataset)
    images, annotations = _of_coco_file(dataset) if from_file else _of_instances(dataset)
    for number, annotation in enumerate(annotations, start=1):
        annotation['id'] = number
    truth = COCO()
    truth.dataset = dict(images=images, annotations=annotations,
                         categories=[dict(id=label + 1, name=name)
                                     for label, name in enumerate(dataset.metainfo['classes'])])
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def num_objects(truth: COCO) -> int:
    """Objects that count: crowds and regions to be ignored do not."""
    return sum(not one['iscrowd'] for one in truth.anns.values())


def _of_coco_file(dataset: CocoDataset) -> tuple[list[dict], list[dict]]:
    """All annotations, those too that the data set leaves out as too small: ``CocoMetric`` counts them."""
    with contextlib.redirect_stdout(io.StringIO()):
        file = COCO(dataset.ann_file)
    images, annotations = [], []
    for place in range(1, len(dataset) + 1):
        info = dataset.get_data_info(place - 1)
        image = file.imgs[info['img_id']]
        federated = {key: [dataset.cat2label[category] + 1 for category in image[key]
                           if category in dataset.cat2label]
                     for key in FEDERATED if isinstance(dataset, (LVISV05Dataset, LVISV1Dataset))}
        images.append(dict(id=place, width=image['width'], height=image['height'], file_name=str(info['img_path']),
                           **federated))
        annotations += [dict(bbox=one['bbox'], area=one['area'], iscrowd=one.get('iscrowd', 0), image_id=place,
                             category_id=dataset.cat2label[one['category_id']] + 1)
                        for one in file.imgToAnns[image['id']] if one['category_id'] in dataset.cat2label]
    return images, annotations


def _of_instances(dataset: BaseDataset) -> tuple[list[dict], list[dict]]:
    images, annotations = [], []
    for place in range(1, len(dataset) + 1):
        info = dataset.get_data_info(place - 1)
        images.append(dict(id=place, width=info['width'], height=info['height'], file_name=str(info['img_path'])))
        for instance in info['instances']:
            left, top, right, bottom = (min(max(float(value), 0.0), float(limit)) for value, limit in zip(
                instance['bbox'], (info['width'], info['height']) * 2, strict=True))
            width, height = right - left, bottom - top
            label = instance['bbox_label']
            # A region to be ignored may be of no class: it is for detections of each.
            for one in [label] if label >= 0 else range(len(dataset.metainfo['classes'])):
                annotations.append(dict(bbox=[left, top, width, height], area=width * height, image_id=place,
                                        iscrowd=int(instance.get('ignore_flag', 0)), category_id=one + 1))
    return images, annotations


def coco_detections(images: Sequence[ImageDetections]) -> list[dict]:
    """Detections of a data set in its order, for :func:`match_detections`, with the ids of :func:`ground_truth`."""
    return [dict(image_id=place, category_id=label + 1, score=score,
                 bbox=[box[0], box[1], box[2] - box[0], box[3] - box[1]])
            for place, image in enumerate(images, start=1)
            for box, score, label in zip(image.bboxes.tolist(), image.scores.tolist(), image.labels.tolist(),
                                         strict=True)]

