"""Checkpoints, data and devices that are not there stop training and testing in one line, before anything is built."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmdet_diffusion import config_path, half_precision, list_configs
from mmdet_diffusion.input_checks import (
    annotation_file_fault,
    refuse_faulty_annotations,
    refuse_foreign_checkpoint,
    refuse_missing_checkpoint,
    refuse_missing_data,
    refuse_missing_device,
    refuse_missing_last_checkpoint,
)
from mmdet_diffusion.launch import (
    checked_arguments,
    parse_cfg_options,
    refuse_missing_inputs,
    with_launcher,
    without_vain_resume,
)
from mmdet_diffusion.testing import REPOSITORY

SHAPES = 'diffusiondet_r18_fpn_1xb4-4k_shapes'
CONFIG = config_path(SHAPES)
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """An empty set of shapes where the config looks for it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'data' / 'shapes'
    for name in ('annotations', 'train', 'val'):
        (folder / name).mkdir(parents=True)
    for name in ('train', 'val'):
        (folder / 'annotations' / f'{name}.json').touch()
    torch.save({}, tmp_path / 'some.pth')
    (tmp_path / 'text.pth').write_text('no checkpoint')
    (tmp_path / 'half.pth').write_bytes((tmp_path / 'some.pth').read_bytes()[:300])
    return folder


def move(path):
    path.rename(path.with_name('moved'))


@pytest.mark.parametrize(('tool', 'args'), [
    ('train.py', []), ('train.py', ['--resume']), ('train.py', ['--resume', 'some.pth']),
    ('train.py', ['--cfg-options', 'load_from=https://host/some.pth']),
    ('test.py', ['some.pth']), ('test.py', ['--show', 'some.pth']), ('test.py', ['--tta', 'https://host/some.pth']),
])
def test_what_is_there_passes(shapes, tool, args):
    refuse_missing_inputs(tool, [CONFIG, *args])


@pytest.mark.parametrize(('tool', 'args', 'refusal'), [
    ('test.py', ['none.pth'], 'there is no checkpoint none.pth'),
    ('test.py', ['--show', 'none.pth'], 'there is no checkpoint none.pth'),
    ('test.py', ['.'], 'there is no checkpoint .'),
    ('test.py', ['text.pth'], 'text.pth is no checkpoint, or only the first part of one'),
    ('train.py', ['--resume', 'half.pth'], 'half.pth (--resume) is no checkpoint, or only the first part of one'),
    ('train.py', ['--resume', 'none.pth'], 'there is no checkpoint none.pth (--resume)'),
    ('train.py', ['--cfg-options', 'load_from=none.pth'], 'there is no checkpoint none.pth (load_from of the config)'),
    ('train.py', ['--cfg-options', 'load_from'], "--cfg-options takes KEY=VALUE, got 'load_from'"),
])
def test_a_checkpoint_that_is_not_there_is_named(shapes, tool, args, refusal):
    with pytest.raises(SystemExit, match=f'^{re.escape(refusal)}$'):
        refuse_missing_inputs(tool, [CONFIG, *args])


@pytest.mark.parametrize(('gone', 'tool', 'refusal'), [
    ('.', 'train.py', 'no data folder data/shapes/ (train_dataloader.dataset.data_root of the config); give yours by '
     '--cfg-options train_dataloader.dataset.data_root=PATH'),
    ('annotations/train.json', 'train.py',
     'no annotation file data/shapes/annotations/train.json (train_dataloader.dataset.ann_file'),
    ('annotations/val.json', 'train.py',
     'no annotation file data/shapes/annotations/val.json (val_dataloader.dataset.ann_file'),
    ('annotations/val.json', 'test.py',
     'no annotation file data/shapes/annotations/val.json (test_dataloader.dataset.ann_file'),
    ('train', 'train.py', 'no folder of images data/shapes/train/ (train_dataloader.dataset.data_prefix.img'),
])
def test_data_that_is_not_there_is_named_with_the_key_to_it(shapes, gone, tool, refusal):
    move(shapes / gone if gone != '.' else shapes)
    with pytest.raises(SystemExit, match=re.escape(f'there is {refusal}')):
        refuse_missing_inputs(tool, [CONFIG, 'some.pth'] if tool == 'test.py' else [CONFIG])


def test_testing_asks_for_no_training_data(shapes):
    move(shapes / 'train')
    refuse_missing_inputs('test.py', [CONFIG, 'some.pth'])


def test_options_of_the_command_line_count(shapes):
    move(shapes)
    options = [f'{loader}.dataset.data_root=data/moved/' for loader in LOADERS]
    with pytest.raises(SystemExit, match='data/shapes/annotations/val.json .val_evaluator.ann_file'):
        refuse_missing_inputs('train.py', [CONFIG, '--cfg-options', *options])
    options += [f'{part}.ann_file=data/moved/annotations/val.json' for part in ('val_evaluator', 'test_evaluator')]
    refuse_missing_inputs('train.py', [CONFIG, '--cfg-options', *options])


def dataset(root):
    return dict(type='CocoDataset', data_root=root, ann_file='a.json')


@pytest.mark.parametrize(('wrapped', 'key'), [
    (dict(type='ClassBalancedDataset', dataset=dataset('none')), 'train_dataloader.dataset.dataset.data_root'),
    (dict(type='ConcatDataset', datasets=[dataset('here'), dataset('none')]),
     'train_dataloader.dataset.datasets.1.data_root'),
    (dict(type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[dataset('none')])),
     'train_dataloader.dataset.dataset.datasets.0.data_root'),
])
def test_a_data_set_inside_wrappers_is_found(tmp_path, monkeypatch, wrapped, key):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'here').mkdir()
    (tmp_path / 'here' / 'a.json').touch()
    with pytest.raises(SystemExit, match=re.escape(f'there is no data folder none ({key} of')):
        refuse_missing_data(Config(dict(train_dataloader=dict(dataset=wrapped))), ('train_dataloader',))


def test_a_root_that_is_not_used_and_data_elsewhere_than_in_the_file_system_are_not_looked_for(tmp_path):
    (tmp_path / 'a.json').touch()
    elsewhere = dict(type='CocoDataset', data_root='none/', ann_file=str(tmp_path / 'a.json'),
                     data_prefix=dict(img=str(tmp_path)))  # mmengine joins no root to these
    remote = dict(type='CocoDataset', data_root='s3://none/', ann_file='a.json', data_prefix=dict(img='i/'))
    behind_arguments = dict(dataset('none'), backend_args=dict(backend='petrel'))
    for inner in (elsewhere, remote, behind_arguments):
        refuse_missing_data(Config(dict(test_dataloader=dict(dataset=inner))), ('test_dataloader', 'test_evaluator'))


def test_a_file_of_lvis_v1_needs_the_addresses_of_its_pictures(tmp_path):
    path = tmp_path / 'lvis.json'
    image = dict(id=1, width=4, height=4, file_name='1.png', coco_url=None)
    path.write_text(json.dumps(dict(images=[image], annotations=[], categories=[dict(id=1, name='a')])))
    assert annotation_file_fault(str(path)) is None
    assert annotation_file_fault(str(path), by_address=True) == (
        f'{path}: images[0] has no coco_url, by which LVIS v1 names its pictures')


def test_each_of_several_evaluators_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.json').touch()
    metrics = [dict(type='CocoMetric', ann_file='a.json'), dict(type='CocoMetric', ann_file='b.json')]
    with pytest.raises(SystemExit, match=r'no annotation file b.json \(test_evaluator.1.ann_file'):
        refuse_missing_data(Config(dict(test_evaluator=metrics)), ('test_evaluator',))


@pytest.mark.parametrize('config', list_configs())
def test_training_any_config_in_an_empty_folder_names_the_folder_of_its_data(tmp_path, monkeypatch, config):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r'^there is no data folder \S+ \(train_dataloader\S*\.data_root of the'):
        refuse_missing_inputs('train.py', [config_path(config), '--cfg-options', 'load_from=None'])


def test_a_training_without_data_ends_in_one_line_and_leaves_nothing(tmp_path):
    done = subprocess.run([sys.executable, REPOSITORY / 'tools' / 'train.py', SHAPES], cwd=tmp_path,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith('there is no data folder data/shapes/ (train_dataloader')
    assert 'Traceback' not in done.stderr and not list(tmp_path.iterdir())


def test_a_config_file_that_is_not_there_ends_in_one_line(tmp_path):
    done = subprocess.run([sys.executable, REPOSITORY / 'tools' / 'test.py', 'none.py', 'none.pth'], cwd=tmp_path,
                          capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, 'there is no config file none.py')


@pytest.mark.parametrize('place', [0, 2, 4])
def test_a_config_is_found_by_its_name_wherever_it_stands(shapes, place):
    args = ['--work-dir', 'here', '--cfg-options', 'load_from=some.pth']
    args.insert(place, SHAPES)
    if place == 4:  # what follows --cfg-options is its
        args = ['--cfg-options', 'load_from=some.pth', '--work-dir', 'here', SHAPES]
    assert CONFIG in checked_arguments('train.py', args) and SHAPES not in checked_arguments('train.py', args)


@pytest.mark.parametrize('place', [0, 2])
def test_a_value_that_is_called_like_the_config_is_none(shapes, place):
    args = ['--work-dir', SHAPES]
    args.insert(place, SHAPES)
    expected = ['--work-dir', SHAPES]
    expected.insert(place, CONFIG)
    assert checked_arguments('train.py', args)[:3] == expected


def test_a_config_that_is_not_there_is_named_wherever_it_stands(shapes):
    with pytest.raises(SystemExit, match='^there is no config file none.py$'):
        checked_arguments('train.py', ['--work-dir', 'here', 'none.py'])


@pytest.mark.parametrize(('content', 'refusal'), [
    ('model = dict(', 'cannot be read as a config'), ('value = 1 / 0', 'ZeroDivisionError: division by zero'),
    ('value = 1', 'is no config of a detector: it has no model')])
def test_a_config_that_is_none_ends_in_one_line(shapes, content, refusal):
    Path('mine.py').write_text(content)
    with pytest.raises(SystemExit, match=f'^mine.py .*{refusal}') as error:
        checked_arguments('train.py', ['mine.py'])
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('options', 'refusal'), [
    ('model.test_dtype=bfloat16', 'model.test_dtype is bfloat16, but it has none'),
    ('optim_wrapper.type=AutocastOptimWrapper', 'optim_wrapper.dtype is bfloat16, but it has none'),
    ('model.test_dtype=int8', 'model.test_dtype must be one of float16, bfloat16')])
def test_half_precision_that_the_device_lacks_ends_before_anything_is_built(shapes, monkeypatch, options, refusal):
    monkeypatch.setattr(half_precision, 'missing_support', lambda device, dtype: 'it has none')
    with pytest.raises(SystemExit, match=refusal):
        checked_arguments('train.py', [CONFIG, '--cfg-options', options])


def test_a_checkpoint_may_be_missing_from_a_config():
    refuse_missing_checkpoint(None)


@pytest.mark.parametrize('device', ['nonsense', 'cpu:x', 'cuda:99'])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(SystemExit, match=f'^there is no device {device} here: .+--device cpu is always there$'):
        refuse_missing_device(device)
    refuse_missing_device('cpu')


def test_a_checkpoint_of_another_model_is_refused():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    whole = model.state_dict()
    uncounted = {f'module.{name}': value for name, value in whole.items() if 'num_batches' not in name}
    refuse_foreign_checkpoint(model, dict(state_dict=uncounted), 'a.pth')  # as old or distributed trainings save
    with pytest.raises(SystemExit, match='a.pth is not of this config: it lacks 1 tensors, such as 0.weight'):
        refuse_foreign_checkpoint(model, {name: whole[name] for name in whole if name != '0.weight'}, 'a.pth')
    with pytest.raises(SystemExit, match='a.pth is not of this config: 1 tensors have another shape, such as 0.bias'):
        refuse_foreign_checkpoint(model, dict(whole, **{'0.bias': torch.zeros(4)}), 'a.pth')


def test_options_are_read_as_mmengine_reads_them():
    assert parse_cfg_options(['a.b=1', 'c=[1,2]', 'd=x=y']) == {'a.b': 1, 'c': [1, 2], 'd': 'x=y'}
    assert parse_cfg_options([]) == {}


# torchrun -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('processes', 'args', 'added'), [
    ('2', [], ['--launcher', 'pytorch']), ('2', ['--launcher', 'none'], []), ('2', ['--launcher=slurm'], []),
    ('1', [], []), (None, [], []),
])
def test_processes_of_torchrun_train_together(monkeypatch, processes, args, added):
    monkeypatch.delenv('TORCHELASTIC_RUN_ID', raising=False)
    if processes is not None:
        monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'none')
        monkeypatch.setenv('WORLD_SIZE', processes)
    assert with_launcher([CONFIG, *args]) == [CONFIG, *args, *added]


@pytest.mark.parametrize('resume', [['--resume'], ['--resume', 'auto'], ['--resume=auto'], ['--resum']])
def test_without_a_checkpoint_to_resume_from_the_training_starts_as_without_resume(tmp_path, resume):
    args = ['mine.py', *resume, '--work-dir', str(tmp_path)]
    assert without_vain_resume(args) == ['mine.py', '--work-dir', str(tmp_path)]
    (tmp_path / 'last_checkpoint').write_text('somewhere.pth')
    assert without_vain_resume(args) == args
    assert without_vain_resume(['mine.py', '--resume', 'a.pth']) == ['mine.py', '--resume', 'a.pth']


def test_a_training_in_shards_is_resumed_from_its_folder(tmp_path):
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path))
    refuse_missing_last_checkpoint(tmp_path)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'gone'))
    with pytest.raises(SystemExit, match='gone'):
        refuse_missing_last_checkpoint(tmp_path)


def test_an_error_of_data_that_are_not_json_is_not_laid_to_their_file(tmp_path):
    (tmp_path / 'annotation.odgt').write_text('{"ID": 1}\n{"ID": 2}\n')
    config = Config(dict(train_dataloader=dict(dataset=dict(
        type='CrowdHumanDataset', ann_file=str(tmp_path / 'annotation.odgt')))))
    try:
        exec(compile('raise AttributeError("theirs")', '/mmdet/datasets/crowdhuman.py', 'exec'))
    except AttributeError as error:
        refuse_faulty_annotations(error, config, ['train_dataloader'])  # does not say that it is no JSON
