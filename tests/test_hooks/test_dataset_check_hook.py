"""Data sets and models that do not fit each other."""

import json
from types import SimpleNamespace

import pytest
from mmdet.datasets import CocoDataset, ConcatDataset
from mmdet.registry import DATASETS, HOOKS
from mmdet.utils import register_all_modules
from mmengine.dataset import ClassBalancedDataset, RepeatDataset
from mmengine.model import BaseTTAModel
from torch import nn

from mmdet_diffusion.hooks import DatasetCheckHook

CLASSES = ('cup', 'pen', 'key')
SHORTENED = "('cup', 'pen', 'key')"
TIMES = ('before_train', 'before_val', 'before_test')


@pytest.fixture(autouse=True, scope='module')
def _scope():
    register_all_modules(init_default_scope=True)


def write_annotations(path, categories):
    """A COCO file with an object of every category in one image."""
    annotations = [
        dict(id=number, image_id=1, category_id=10 * number, bbox=[10, 10, 40, 30], area=1200, iscrowd=0)
        for number in range(1, len(categories) + 1)
    ]
    path.write_text(json.dumps(dict(
        images=[dict(id=1, file_name='1.jpg', width=100, height=80)],
        annotations=annotations,
        categories=[dict(id=10 * number, name=name) for number, name in enumerate(categories, start=1)])))


def coco(tmp_path, categories=CLASSES, classes=CLASSES, name='some.json'):
    write_annotations(tmp_path / name, categories)
    metainfo = None if classes is None else dict(classes=classes)
    return CocoDataset(ann_file=str(tmp_path / name), data_prefix=dict(img=''), metainfo=metainfo, pipeline=[],
                       test_mode=True, serialize_data=False)  # serialising collects garbage, which takes half a second


def run(dataset, num_classes=3, time='before_train', wrap=None):
    """Call the hook as a Runner with these data and such a head does."""
    model = nn.Module()
    model.bbox_head = SimpleNamespace(num_classes=num_classes)
    model.test_step = None  # BaseTTAModel wants one
    loader = SimpleNamespace(dataset=dataset)
    other = SimpleNamespace(dataset=None)
    loaders = {f'{name}_dataloader': loader if time == f'before_{name}' else other for name in ('train', 'val', 'test')}
    getattr(DatasetCheckHook(), time)(SimpleNamespace(model=wrap(model) if wrap else model, **loaders))


@pytest.mark.parametrize('time', TIMES)
def test_the_right_classes_pass(tmp_path, time):
    run(coco(tmp_path), time=time)


def test_a_file_with_more_categories_than_are_used_passes(tmp_path):
    run(coco(tmp_path, categories=('box', 'cup', 'pen', 'lid', 'key')))


@pytest.mark.parametrize('time', TIMES)
@pytest.mark.parametrize('num_classes', [2, 4, 80])
def test_a_wrong_number_of_classes_names_file_both_numbers_and_cure(tmp_path, time, num_classes):
    with pytest.raises(ValueError) as error:
        run(coco(tmp_path), num_classes, time)
    for words in ('some.json', '3 classes', SHORTENED, f'num_classes={num_classes}',
                  'Set model.bbox_head.num_classes=3', 'metainfo=dict(classes=(...))'):
        assert words in str(error.value)


@pytest.mark.parametrize('time', TIMES)
def test_a_missing_category_names_file_both_lists_and_cure(tmp_path, time):
    with pytest.raises(ValueError) as error:
        run(coco(tmp_path, categories=('cup', 'biro', 'key')), time=time)
    for words in ('some.json', "has no category ('pen')", "('cup', 'biro', 'key')", 'metainfo=dict(classes=(...))'):
        assert words in str(error.value)


@pytest.mark.parametrize('time', TIMES)
def test_another_order_names_file_both_lists_and_cure(tmp_path, time):
    with pytest.raises(ValueError) as error:
        run(coco(tmp_path, categories=('key', 'cup', 'pen')), time=time)
    for words in ('some.json', "('key', 'cup', 'pen')", SHORTENED, 'metainfo=dict(classes=...) in that order'):
        assert words in str(error.value)


def test_another_order_is_indeed_numbered_as_the_file_has_it(tmp_path):
    """Why the order matters: when this fails, MMDetection goes by the names and the check can go."""
    dataset = coco(tmp_path, categories=('key', 'cup', 'pen'))
    assert [dataset.cat2label[number] for number in (10, 20, 30)] == [0, 1, 2]
    assert dataset.metainfo['classes'][0] == 'cup'


def test_a_file_of_other_things_with_the_default_classes_is_refused(tmp_path):
    """metainfo was forgotten: the classes are COCO's, and the file has three others."""
    with pytest.raises(ValueError, match="some.json has no category .*'person'.*'cup', 'pen', 'key'"):
        run(coco(tmp_path, categories=('cup', 'pen', 'key'), classes=None), num_classes=80)


def test_the_default_classes_in_the_order_of_the_file_pass(tmp_path):
    run(coco(tmp_path, categories=CocoDataset.METAINFO['classes'], classes=None), num_classes=80)


def test_the_default_classes_in_another_order_than_the_file_are_refused(tmp_path):
    """Such as a file of COCO's categories sorted by name."""
    with pytest.raises(ValueError, match='some.json lists the classes as'):
        run(coco(tmp_path, categories=sorted(CocoDataset.METAINFO['classes']), classes=None), num_classes=80)


def test_data_sets_without_a_coco_file_are_checked_by_their_number_alone(tmp_path):
    dataset = DATASETS.build(dict(type='VOCDataset', ann_file='list.txt', data_root=f'{tmp_path}/VOC2007',
                                  data_prefix=dict(sub_data_root=''), pipeline=[], lazy_init=True))
    run(dataset, num_classes=20)
    with pytest.raises(ValueError, match='20 classes.*num_classes=3'):
        run(dataset, num_classes=3)


# Wrapped data sets and models -----------------------------------------------------------------------------------------

WRAPPERS = dict(
    concat=lambda good, other: ConcatDataset([good, other]),
    repeat=lambda good, other: RepeatDataset(other, times=2),
    class_balanced=lambda good, other: ClassBalancedDataset(other, oversample_thr=0.1),
    repeat_of_concat=lambda good, other: RepeatDataset(dict(type='ConcatDataset', datasets=[good, other]), times=2),
    repeat_of_class_balanced=lambda good, other: RepeatDataset(
        dict(type='ClassBalancedDataset', dataset=other, oversample_thr=0.1), times=2),
)


@pytest.mark.parametrize('time', TIMES)
@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_wrapped_data_sets_that_fit_pass(tmp_path, wrapper, time):
    run(WRAPPERS[wrapper](coco(tmp_path), coco(tmp_path, name='other.json')), time=time)


@pytest.mark.parametrize('time', TIMES)
@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_wrapped_data_sets_that_do_not_fit_are_found(tmp_path, wrapper, time):
    wrong = coco(tmp_path, categories=('key', 'cup', 'pen'), name='other.json')
    with pytest.raises(ValueError, match='other.json lists the classes'):
        run(WRAPPERS[wrapper](coco(tmp_path), wrong), time=time)


class Wrapped(nn.Module):
    """As DistributedDataParallel wraps: what it wraps is its ``module``."""

    def __init__(self, module):
        super().__init__()
        self.module = module


class Averaging(BaseTTAModel):

    def merge_preds(self, data_samples_list):
        return data_samples_list


@pytest.mark.parametrize('wrap', [Wrapped, Averaging, lambda model: Wrapped(Averaging(model))],
                         ids=['distributed', 'test_time_augmentation', 'both'])
def test_the_head_is_found_in_a_wrapped_model(tmp_path, wrap, monkeypatch):
    from mmengine.registry import MODEL_WRAPPERS
    if 'Wrapped' not in MODEL_WRAPPERS.module_dict:
        monkeypatch.setitem(MODEL_WRAPPERS.module_dict, 'Wrapped', Wrapped)
    run(coco(tmp_path), wrap=wrap)
    with pytest.raises(ValueError, match='num_classes=4'):
        run(coco(tmp_path), num_classes=4, wrap=wrap)


def test_the_hook_is_registered_and_only_looks_before_the_loops():
    hook = HOOKS.build(dict(type='DatasetCheckHook'))
    assert isinstance(hook, DatasetCheckHook)
    own = {name for name in vars(DatasetCheckHook) if name.startswith(('before', 'after'))}
    assert own == set(TIMES)
