"""Hook that compares the data sets with the model before the first iteration."""

import logging
from collections.abc import Iterator

from mmdet.registry import HOOKS
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from ..annotation_categories import read_categories
from ..losses import FederatedLoss


@HOOKS.register_module()
class DatasetCheckHook(Hook):
    """Stops where the classes of a data set and of the model differ; MMDetection would go on silently.

    Before training, validation and testing it raises a ValueError if the number of classes is not the head's
    ``num_classes``, if the annotation file lacks some of them, or if it lists them in another order (MMDetection
    numbers classes in the order of the file, so the names of all detections would be wrong). Names that are only spelt
    differently, as one of LVIS v1 is in MMDetection, are logged. What cannot be checked (a model without one number of
    classes, a data set that names none) is logged once and let go.

    Before training it also has a :class:`FederatedLoss` read its image counts.
    """

    def __init__(self) -> None:
        self._checked = set()

    def before_train(self, runner: Runner) -> None:
        """Check the training data, and the validation data too: not after thousands of iterations."""
        for module in runner.model.modules():
            if isinstance(module, FederatedLoss):
                module.read_counts()
        self._check(runner, runner.train_dataloader.dataset)
        if getattr(runner, 'val_loop', None) is not None:
            self._check(runner, runner.val_loop.dataloader.dataset)

    def before_val(self, runner: Runner) -> None:
        """Check the validation data."""
        self._check(runner, runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        """Check the test data."""
        self._check(runner, runner.test_dataloader.dataset)

    def _check(self, runner: Runner, dataset: object) -> None:
        if id(dataset) in self._checked:  # validation comes round many times, and annotation files can be large
            return
        self._checked.add(id(dataset))
        numbers = class_numbers(runner.model)
        if len(numbers) != 1:
            print_log(f'classes of {type(dataset).__name__} not compared with the model: {type(runner.model).__name__} '
                      f'has {"several numbers of classes" if numbers else "no bbox_head with num_classes"}', 'current')
            return
        for part in _leaves(dataset):
            check_classes(part, *numbers)


def class_numbers(model: nn.Module) -> set[int]:
    """``num_classes`` of every ``bbox_head`` in a model, however it is wrapped (DDP, test-time augmentation, teacher
    and student); a cascade has several heads."""
    heads = [getattr(module, 'bbox_head', None) for module in model.modules()]
    heads = [part for head in heads for part in (head if isinstance(head, nn.ModuleList) else [head])]
    numbers = {getattr(head, 'num_classes', None) for head in heads}
    return {number for number in numbers if isinstance(number, int)}


def _leaves(dataset: object) -> Iterator[BaseDataset]:
    """Data sets inside wrappers such as ``ConcatDataset`` and ``RepeatDataset``."""
    if hasattr(dataset, 'datasets'):
        children = dataset.datasets
    elif hasattr(dataset, 'dataset'):
        children = [dataset.dataset]
    else:
        yield dataset
        return
    for child in children:
        yield from _leaves(child)


def check_classes(dataset: BaseDataset, num_classes: int) -> None:
    """Compare one data set's classes with the head and, for COCO-format data, with its file.

    Args:
        dataset (BaseDataset): initialised.
        num_classes (int): of the head.

    Raises:
        ValueError: if they differ; names both and the cure.
    """
    classes = tuple(getattr(dataset, 'metainfo', {}).get('classes', ()))
    file_name = getattr(dataset, 'ann_file', '')
    if not classes:
        print_log(f"{type(dataset).__name__} names no classes, so they are not compared with the head's", 'current')
        return
    if len(classes) != num_classes:
        raise ValueError(
            f'{type(dataset).__name__} ({file_name}) has {len(classes)} classes, {_shorten(classes)}, but the head '
            f'has num_classes={num_classes}. Set model.bbox_head.num_classes={len(classes)}, or metainfo=dict('
            'classes=(...)) of the data set')
    if not hasattr(dataset, 'cat_ids'):  # not of COCO's format
        return
    categories = read_categories(file_name, getattr(dataset, 'backend_args', None))
    _check_order(classes, {category['id']: category['name'] for category in categories}, dataset.cat_ids, file_name)


def _check_order(classes: tuple[str, ...], names: dict[int, str], cat_ids: list[int], file_name: str) -> None:
    """Labels are places among ``cat_ids``, so class i must be the category there."""
    missing = [name for name in classes if name not in names.values()]
    order = tuple(names[category_id] for category_id in cat_ids)  # some data sets sort the file's
    if len(order) != len(classes):  # they leave out what they do not find by its name
        raise ValueError(f'{file_name} has no category {_shorten(missing)}; its categories are '
                         f'{_shorten(list(names.values()))}. Correct metainfo=dict(classes=(...)) of the data set')
    other = [(name, expected) for name, expected in zip(order, classes, strict=True) if name != expected]
    if any(name in classes or expected in order for name, expected in other):
        raise ValueError(f'{file_name} lists the classes as {_shorten(order)}, the data set as {_shorten(classes)}. '
                         'MMDetection numbers them as the file does: write metainfo=dict(classes=...) in that order')
    if other:
        spelt = ', '.join(f'{name!r} for {expected!r}' for name, expected in other[:12])
        print_log(f'{file_name} has other names for {len(other)} of the {len(classes)} classes: {spelt}', 'current',
                  logging.WARNING)


def _shorten(names: list[str] | tuple[str, ...], limit: int = 12) -> str:
    shown = ', '.join(repr(name) for name in names[:limit])
    return f'({shown}{", ..." if len(names) > limit else ""})'
