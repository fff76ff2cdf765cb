"""Says why a data set has no image left, where mmengine would end in words of NumPy's."""

import math
import traceback
from collections.abc import Iterator

from mmengine.dataset import BaseDataset

from ..hooks.dataset_check_hook import check_classes


def refuse_emptied_dataset(error: Exception) -> None:
    """Explain what ended the building of a data loader, where a data set without images did.

    Args:
        error (Exception): as it was raised. Passed over unless a data set was about to store its images and had none.

    Raises:
        ValueError: names the annotation file, the reason and the cure.
    """
    for dataset in _storing(error):
        if not dataset.data_list:
            raise ValueError(emptied_dataset_fault(dataset)) from error


def emptied_dataset_fault(dataset: BaseDataset) -> str:
    """Why a data set has no image left.

    Args:
        dataset (BaseDataset): whose filters have run.

    Returns:
        str: names the annotation file and the numbers of images that each filter lets through.
    """
    name = f'{type(dataset).__name__} ({dataset.ann_file})'
    images = dataset.load_data_list()
    if not images:
        return f'{name} lists no image to train on'
    try:
        check_classes(dataset, len(dataset.metainfo['classes']))
    except ValueError as wrong_names:
        return str(wrong_names)
    filters = dataset.filter_cfg or {}
    with_objects = sum(bool(image.get('instances')) for image in images)
    smallest = filters.get('min_size', 0)
    large = sum(min(image.get('width', math.inf), image.get('height', math.inf)) >= smallest for image in images)
    return (f'{name}: of {len(images)} images none is left to train on; {with_objects} have objects of its classes, '
            f'and {large} a shorter side of min_size={smallest} or more, as filter_cfg={dict(filters)} asks for. '
            "Correct the file, or the data set's filter_cfg")


def _storing(error: Exception) -> Iterator[BaseDataset]:
    """Data sets that were about to pack the records of their images."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get('self')
        if frame.f_code.co_name == '_serialize_data' and isinstance(owner, BaseDataset):
            yield owner
