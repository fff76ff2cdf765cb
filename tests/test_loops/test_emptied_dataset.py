"""A data set without images to train on is named with the reason, not by what NumPy cannot join."""

import json
import re
from types import SimpleNamespace

import pytest
from mmdet.datasets import CocoDataset
from mmdet.utils import register_all_modules
from mmengine.runner import Runner

from mmdet_diffusion.loops import ResumableTrainLoop

CLASSES = ('cup', 'pen')


@pytest.fixture(autouse=True, scope='module')
def _scope():
    register_all_modules(init_default_scope=True)


def annotation_file(folder, images=3, objects=2, side=80):
    file = folder / 'train.json'
    file.write_text(json.dumps(dict(
        images=[dict(id=number, file_name=f'{number}.jpg', width=100, height=side) for number in range(images)],
        annotations=[dict(id=number + 1, image_id=number, category_id=1, bbox=[10, 10, 40, 30], area=1200, iscrowd=0)
                     for number in range(objects)],
        categories=[dict(id=number, name=name) for number, name in enumerate(CLASSES, start=1)])))
    return file


def build(file, wrap=None, classes=CLASSES, **filters):
    """The loop as a Runner builds it; a data loader is all that it comes to."""
    dataset = dict(type='CocoDataset', ann_file=str(file), data_prefix=dict(img=''), metainfo=dict(classes=classes),
                   filter_cfg=dict(filter_empty_gt=True, min_size=32) | filters, pipeline=[])
    loader = dict(batch_size=1, num_workers=0, sampler=dict(type='InfiniteSampler'),
                  dataset=wrap(dataset) if wrap else dataset)
    runner = SimpleNamespace(_randomness_cfg={}, seed=0, build_dataloader=Runner.build_dataloader,
                             visualizer=SimpleNamespace())
    return ResumableTrainLoop(runner, loader, max_iters=1)


def repeated(dataset):
    return dict(type='RepeatDataset', dataset=dataset, times=2)


def joined(dataset):
    return dict(type='ConcatDataset', datasets=[dataset, dataset])


WRAPPERS = pytest.mark.parametrize('wrap', [None, repeated, joined], ids=['bare', 'repeated', 'joined'])


@WRAPPERS
def test_a_set_with_images_is_built(tmp_path, wrap):
    assert len(build(annotation_file(tmp_path), wrap).dataloader.dataset) == (4 if wrap else 2)


@WRAPPERS
def test_wrong_names_of_all_classes_are_named(tmp_path, wrap):
    file = annotation_file(tmp_path)
    expected = f"{file} has no category ('dog', 'cat'); its categories are ('cup', 'pen'). Correct metainfo"
    with pytest.raises(ValueError, match=re.escape(expected)):
        build(file, wrap, classes=('dog', 'cat'))


@WRAPPERS
def test_images_that_are_all_too_small_are_counted(tmp_path, wrap):
    file = annotation_file(tmp_path, side=31)
    expected = (f'CocoDataset ({file}): of 3 images none is left to train on; 2 have objects of its classes, and 0 a '
                'shorter side of min_size=32 or more')
    with pytest.raises(ValueError, match=re.escape(expected)):
        build(file, wrap)


def test_images_without_any_object_are_counted(tmp_path):
    file = annotation_file(tmp_path, objects=0)
    with pytest.raises(ValueError, match='none is left to train on; 0 have objects of its classes, and 3 a shorter'):
        build(file)
    assert len(build(file, filter_empty_gt=False).dataloader.dataset) == 3


def test_a_file_without_images_says_so(tmp_path):
    file = annotation_file(tmp_path, images=0, objects=0)
    with pytest.raises(ValueError, match=re.escape(f'CocoDataset ({file}) lists no image to train on')):
        build(file)


def test_other_formats_are_explained_too(tmp_path):
    (tmp_path / 'Annotations').mkdir()
    (tmp_path / 'train.txt').write_text('1\n')
    (tmp_path / 'Annotations' / '1.xml').write_text(
        '<annotation><size><width>100</width><height>80</height></size></annotation>')
    voc = dict(type='VOCDataset', ann_file='train.txt', data_prefix=dict(sub_data_root=''), data_root=str(tmp_path),
               filter_cfg=dict(filter_empty_gt=True))
    with pytest.raises(ValueError, match=r'VOCDataset \(.*train.txt\): of 1 images none is left .*; 0 have objects'):
        build(annotation_file(tmp_path), lambda dataset: voc)


def test_other_errors_stay_as_they_are(tmp_path, monkeypatch):
    def fails(dataset):
        raise ValueError('of another kind')
    monkeypatch.setattr(CocoDataset, 'filter_data', fails)
    with pytest.raises(ValueError, match='^of another kind$'):
        build(annotation_file(tmp_path))
