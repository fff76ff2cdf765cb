"""Ground truth of a batch as rectangular tensors, checked on the way."""

import warnings

import torch
from mmdet.structures import SampleList
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..ops import upload
from ..structures import PaddedObjects

MAX_COORDINATE = 1e9  # pixels; where areas overflow float32 is not far


def image_sizes(img_metas: list[dict], device: torch.device) -> Tensor:
    """Width, height, width, height of each image before padding, pixels, float32, shape (B, 4)."""
    sizes = [[width, height, width, height] for height, width in (meta['img_shape'][:2] for meta in img_metas)]
    return upload(torch.tensor(sizes, dtype=torch.float32), device)


def pad_objects(batch_data_samples: SampleList, num_classes: int) -> PaddedObjects:
    """Collect the objects of a batch; objects that no box can be learnt from are left out with a warning.

    Args:
        batch_data_samples (SampleList): ``gt_instances.bboxes`` absolute xyxy in pixels, ``gt_instances.labels``,
            and ``img_shape`` (height, width) of the network input.
        num_classes (int): C, for the check of the labels.

    Returns:
        PaddedObjects: see there.

    Raises:
        ValueError: if a box is not finite or beyond ``MAX_COORDINATE``, or a label not in 0..C-1; names the image, the
            value and the cure.
    """
    instances = [sample.gt_instances for sample in batch_data_samples]
    bboxes = [get_box_tensor(image.bboxes).float() for image in instances]
    counts = torch.tensor([len(boxes) for boxes in bboxes])
    width = max(1, int(counts.max()))
    device = bboxes[0].device
    padded = pad_sequence([*bboxes, bboxes[0].new_zeros(width, 4)], batch_first=True)[:-1]
    labels = [image.labels.long() for image in instances]
    labels = pad_sequence([*labels, labels[0].new_zeros(width)], batch_first=True)[:-1]
    valid = (torch.arange(width) < counts[:, None]).to(device)
    img_whwh = image_sizes([sample.metainfo for sample in batch_data_samples], device)
    objects = PaddedObjects(padded, labels, valid, img_whwh)
    return _without_unusable(objects, batch_data_samples, num_classes)


def repeat_objects(objects: PaddedObjects, num_groups: int) -> PaddedObjects:
    """The objects once for each group of noise: rows of (B * G, ...), the groups of an image in a row."""
    return PaddedObjects(*(field.repeat_interleave(num_groups, dim=0) for field in objects))


def _without_unusable(objects: PaddedObjects, batch_data_samples: SampleList, num_classes: int) -> PaddedObjects:
    inside = torch.minimum(objects.bboxes.clamp(min=0), objects.img_whwh[:, None])
    has_area = (inside[..., 2:] > inside[..., :2]).all(-1)
    known = (objects.labels >= 0) & (objects.labels < num_classes)
    unusable = objects.valid & ~(has_area & (objects.bboxes.abs() <= MAX_COORDINATE).all(-1) & known)
    if not unusable.any():
        return objects
    for image, slot in unusable.nonzero().tolist():
        meta = batch_data_samples[image].metainfo
        _report(objects.bboxes[image, slot].tolist(), int(objects.labels[image, slot]), meta, num_classes)
    valid = objects.valid & ~unusable
    return objects._replace(
        bboxes=objects.bboxes.masked_fill(~valid[..., None], 0), labels=objects.labels.masked_fill(~valid, 0),
        valid=valid)


def _report(bbox: list[float], label: int, meta: dict, num_classes: int) -> None:
    name = meta.get('img_path', meta.get('img_id', 'without a name'))
    if not 0 <= label < num_classes:
        raise ValueError(
            f'image {name}: label {label} is outside 0..{num_classes - 1}. Set model.bbox_head.num_classes to the '
            "number of classes in the data set's metainfo")
    rounded = [round(value, 2) for value in bbox]
    if not all(abs(value) <= MAX_COORDINATE for value in bbox):
        raise ValueError(f'image {name}: ground-truth box {rounded} (xyxy, pixels) is not finite, or beyond '
                         f'{MAX_COORDINATE:.0e}; correct the annotation or the transform that made it')
    warnings.warn(
        f'image {name}: ground-truth box {rounded} (xyxy, pixels) has no area within the image '
        f'{tuple(meta["img_shape"][:2])} (h, w) and is left out; drop such boxes with '
        'FilterAnnotations(min_gt_bbox_wh=(1e-2, 1e-2)) in the training pipeline', stacklevel=2)
