"""Hook that compares the data sets with the model before the first iteration."""

from collections.abc import Iterator

import mmengine
from mmdet.registry import HOOKS
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner


@HOOKS.register_module()
class DatasetCheckHook(Hook):
    """Stops where the classes of a data set and of the model differ; MMDetection would go on silently.

    Before training, validation and testing it raises a ValueError if the number of classes is not the head's
    ``num_classes``, if the annotation file lacks one of them, or if it lists them in another order (MMDetection numbers
    classes in the order of the file, so the names of all detections would be wrong).
    """

    def __init__(self) -> None:
        self._checked = set()

    def before_train(self, runner: Runner) -> None:
        """Check the training data, and the validation data too: not after thousands of iterations."""
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
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model = getattr(model, 'module', model)  # a test-time augmentation model wraps the detector once more
        num_classes = model.bbox_head.num_classes
        for part in _leaves(dataset):
            check_classes(part, num_classes)
        self._checked.add(id(dataset))


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
    classes = tuple(dataset.metainfo.get('classes', ()))
    file_name = getattr(dataset, 'ann_file', '')
    if len(classes) != num_classes:
        raise ValueError(
            f'{type(dataset).__name__} ({file_name}) has {len(classes)} classes, {_shorten(classes)}, but the head '
            f'has num_classes={num_classes}. Set model.bbox_head.num_classes={len(classes)}, or metainfo=dict('
            'classes=(...)) of the data set')
    if not hasattr(dataset, 'cat_ids'):  # not of COCO's format
        return
    content = mmengine.load(file_name, backend_args=getattr(dataset, 'backend_args', None))
    names = {category['id']: category['name'] for category in content['categories']}
    in_file = list(names.values())
    missing = [name for name in classes if name not in in_file]
    if missing:
        raise ValueError(f'{file_name} has no category {_shorten(missing)}; its categories are {_shorten(in_file)}. '
                         'Correct metainfo=dict(classes=(...)) of the data set')
    order = tuple(names[category_id] for category_id in dataset.cat_ids)  # some data sets sort the file's
    if order != classes:
        raise ValueError(f'{file_name} lists the classes as {_shorten(order)}, the data set as {_shorten(classes)}. '
                         'MMDetection numbers them as the file does: write metainfo=dict(classes=...) in that order')


def _shorten(names: list[str] | tuple[str, ...], limit: int = 12) -> str:
    shown = ', '.join(repr(name) for name in names[:limit])
    return f'({shown}{", ..." if len(names) > limit else ""})'
