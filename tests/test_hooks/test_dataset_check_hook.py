"""Data sets and models that do not fit each other."""

import copy
import inspect
import json
from types import SimpleNamespace

import pytest
import torch
from mmdet.datasets import CocoDataset, ConcatDataset, LVISV1Dataset
from mmdet.registry import DATASETS, HOOKS
from mmdet.utils import register_all_modules
from mmengine.dataset import ClassBalancedDataset, RepeatDataset
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel
from torch import nn
from torch.utils.data import TensorDataset

from mmdet_diffusion.hooks import DatasetCheckHook, dataset_check_hook

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


def run(dataset, num_classes=3, time='before_train', wrap=None, hook=None):
    """Call the hook as a Runner with these data and such a head does."""
    model = nn.Module()
    model.bbox_head = SimpleNamespace(num_classes=num_classes)
    model.test_step = None  # BaseTTAModel wants one
    loader = SimpleNamespace(dataset=dataset)
    other = SimpleNamespace(dataset=None)
    loaders = {f'{name}_dataloader': loader if time == f'before_{name}' else other for name in ('train', 'val', 'test')}
    getattr(hook or DatasetCheckHook(), time)(SimpleNamespace(model=wrap(model) if wrap else model, **loaders))


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


def lvis(tmp_path, names):
    """An LVIS v1 data set whose file has these category names, an image and no object."""
    file = tmp_path / 'lvis.json'
    file.write_text(json.dumps(dict(
        images=[dict(id=1, file_name='1.jpg', coco_url='http://images.cocodataset.org/val2017/1.jpg', width=100,
                     height=80, neg_category_ids=[], not_exhaustive_category_ids=[])],
        annotations=[], categories=[dict(id=number, name=name) for number, name in enumerate(names, start=1)])))
    return LVISV1Dataset(ann_file=str(file), data_prefix=dict(img=''), pipeline=[], test_mode=True,
                         serialize_data=False)


LVIS_NAMES = list(LVISV1Dataset.METAINFO['classes'])
SPEAKER = LVIS_NAMES.index('speaker_(stereo_equipment)')
AS_IN_THE_FILE = [*LVIS_NAMES[:SPEAKER], 'speaker_(stero_equipment)', *LVIS_NAMES[SPEAKER + 1:]]


@pytest.fixture
def logged(monkeypatch):
    lines = []
    monkeypatch.setattr(dataset_check_hook, 'print_log', lambda text, *args: lines.append(text))
    return lines


@pytest.mark.parametrize('time', TIMES)
def test_the_published_lvis_file_passes_and_its_other_spelling_is_logged(tmp_path, logged, time):
    run(lvis(tmp_path, AS_IN_THE_FILE), num_classes=1203, time=time)
    assert len(logged) == 1
    assert "'speaker_(stero_equipment)' for 'speaker_(stereo_equipment)'" in logged[0]


def test_lvis_classes_in_another_order_are_refused(tmp_path):
    swapped = [LVIS_NAMES[1], LVIS_NAMES[0], *AS_IN_THE_FILE[2:]]
    with pytest.raises(ValueError, match='lists the classes as'):
        run(lvis(tmp_path, swapped), num_classes=1203)


def test_a_spelling_that_moves_the_classes_after_it_is_refused(tmp_path):
    """One name more at the front: each of the following is of another number."""
    with pytest.raises(ValueError, match='lists the classes as'):
        run(lvis(tmp_path, ['new', *LVIS_NAMES[:-1]]), num_classes=1203)


def test_lvis_with_a_class_less_is_refused(tmp_path):
    with pytest.raises(ValueError, match='has no category'):
        run(lvis(tmp_path, LVIS_NAMES[:-1]), num_classes=1203)


# What cannot be checked -----------------------------------------------------------------------------------------------


def test_a_plain_data_set_is_let_go_and_said_once(logged):
    hook = DatasetCheckHook()
    dataset = TensorDataset(torch.zeros(2))
    for _ in range(2):
        run(dataset, hook=hook)
    assert logged == ["TensorDataset names no classes, so they are not compared with the head's"]


def test_a_model_without_a_head_is_let_go_and_said_once(tmp_path, logged):
    hook, dataset = DatasetCheckHook(), coco(tmp_path)
    for _ in range(2):
        run(dataset, wrap=lambda model: nn.Linear(1, 1), hook=hook)
    assert logged == ['classes of CocoDataset not compared with the model: Linear has no bbox_head with num_classes']


def test_heads_of_several_numbers_are_let_go(tmp_path, logged):

    def two_heads(model):
        other = nn.Module()
        other.bbox_head = SimpleNamespace(num_classes=7)
        return nn.ModuleList([model, other])

    run(coco(tmp_path), wrap=two_heads)
    assert len(logged) == 1 and 'several numbers of classes' in logged[0]


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


class TeacherAndStudent(nn.Module):
    """As SemiBaseDetector wraps."""

    def __init__(self, model):
        super().__init__()
        self.student, self.teacher = model, copy.deepcopy(model)


class Holder(nn.Module):
    """As trackers and panoptic models hold a detector."""

    def __init__(self, model):
        super().__init__()
        self.detector = model


@pytest.mark.parametrize('wrap', [Wrapped, Averaging, lambda model: Wrapped(Averaging(model)), TeacherAndStudent,
                                  Holder],
                         ids=['distributed', 'test_time_augmentation', 'both', 'semi_supervised', 'tracker'])
def test_the_head_is_found_in_a_wrapped_model(tmp_path, wrap):
    run(coco(tmp_path), wrap=wrap)
    with pytest.raises(ValueError, match='num_classes=4'):
        run(coco(tmp_path), num_classes=4, wrap=wrap)


class Untouchable:
    """A runner that must not be looked at."""

    def __getattr__(self, name):
        raise AssertionError(f'the hook asked for {name} of the runner')


def test_within_the_loops_the_hook_looks_at_nothing():
    """At the times that mmengine calls a hook of a config, but for the three before the loops."""
    hook = HOOKS.build(dict(type='DatasetCheckHook'))
    for time in TIMES:
        with pytest.raises(AssertionError, match='the hook asked for'):
            getattr(hook, time)(Untouchable())
    rest = [time for time in Hook.stages if time not in TIMES]
    assert {'before_train_iter', 'after_val_epoch', 'after_run'} <= set(rest)
    for time in rest:
        call = getattr(hook, time)
        call(Untouchable(), *[None] * (len(inspect.signature(call).parameters) - 1))
