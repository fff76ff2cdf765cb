"""mmdet-diffusion compare: several detectors, one of which cannot be tested, on a made set."""

import csv
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

from mmdet_diffusion.evaluation.contest import Contest, Entry
from mmdet_diffusion.evaluation.contest import test_loader as loader_of  # not a test
from mmdet_diffusion.evaluation.dial_settings import DialSetting
from mmdet_diffusion.testing import REPOSITORY, load_tool

compare = load_tool('analysis_tools/compare_detectors.py')
SHAPES = REPOSITORY / 'configs' / 'diffusiondet' / 'diffusiondet_r18_fpn_1xb4-4k_shapes.py'
OURS = """
_base_ = {base!r}
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root={data!r}))
test_evaluator = dict(ann_file={data!r} + 'annotations/val.json')
model = dict(channels_last=False, bbox_head=dict(num_proposals=10, num_stages=2), test_cfg=dict(num_proposals=None))
"""
FCOS = OURS.split('model =')[0] + """
model = dict(_delete_=True, type='FCOS', data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
    backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
    neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4),
    bbox_head=dict(type='FCOSHead', num_classes=6, in_channels=16, feat_channels=16, stacked_convs=1,
        strides=[4, 8, 16, 32], regress_ranges=((-1, 24), (24, 48), (48, 96), (96, 1e8)), norm_cfg=None),
    test_cfg=dict(nms_pre=100, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.6), max_per_img=20))
"""


@pytest.fixture(scope='module')
def contest(tmp_path_factory):
    """Configs and random weights of two detectors on a set of six pictures."""
    register_all_modules(init_default_scope=True)
    folder = tmp_path_factory.mktemp('contest')
    make = load_tool('dataset_converters/make_shapes.py')
    make.make_set(folder / 'shapes', num_train=1, num_val=6, size=64)
    files = SimpleNamespace(folder=folder)
    for name, text in dict(ours=OURS, fcos=FCOS).items():
        path = folder / f'{name}.py'
        path.write_text(text.format(base=str(SHAPES), data=f'{folder}/shapes/'))
        for seed in (0, 1):
            torch.manual_seed(seed)
            model = MODELS.build(Config.fromfile(path).model)
            torch.save(dict(state_dict=model.state_dict()), folder / f'{name}_{seed}.pth')
        setattr(files, name, str(path))
    log = folder / '20260101' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('\n'.join(json.dumps(entry) for entry in (
        dict(loss=3.0, time=0.5, iter=10), {'coco/bbox_mAP': 0.1, 'step': 10}, dict(loss=2.0, time=0.7, iter=20),
        {'coco/bbox_mAP': 0.3, 'step': 20})) + '\n{"loss": 1.')
    return files


def arguments(contest, out, *extra):
    files = [str(contest.folder / name) for name in ('ours_0.pth', 'ours_1.pth', 'fcos_0.pth', 'fcos_1.pth')]
    return ['--detector', f'ours={contest.ours}', *files[:2], '--detector', f'fcos={contest.fcos}', files[2],
            '--settings', '1x8', '2x12', '--seeds', '0', '1', '--num-draws', '100', '--device', 'cpu', '--out-dir',
            str(out), *extra]


@pytest.fixture(scope='module')
def done(contest, tmp_path_factory):
    """Where a comparison wrote, with a detector that has the weights of another."""
    out = tmp_path_factory.mktemp('out')
    wrong = ['--detector', f'wrong={contest.fcos}', str(contest.folder / 'ours_0.pth')]
    assert compare.main(arguments(contest, out, *wrong)) == 0
    return out


def test_sizes_without_objects_have_no_figure(done):
    header, _, *rows = [line.split(' | ') for line in (done / 'compare.md').read_text().split('## Accuracy')[1]
                        .split('##')[0].splitlines() if line.startswith('|')]
    large = header.index('AP_large')  # of pictures of 64 pixels
    assert len(rows) == 3 and all(row[large] == 'no objects' and float(row[1]) >= 0 for row in rows)


def test_every_detector_and_setting_has_its_figures(done):
    content = json.loads((done / 'compare.json').read_text())
    found = {one['name']: one for one in content['detectors']}
    assert list(found) == ['ours 1x8', 'ours 2x12', 'fcos']
    assert [len(training) for training in found['ours 1x8']['metrics']['AP']] == [2, 2]
    assert found['fcos']['metrics']['AP'] == [[pytest.approx(found['fcos']['metrics']['AP'][0][0])]]
    assert len(content['differences']) == len(content['verdicts']) == 3
    for one in found.values():
        cost = one['cost']
        assert 0 < cost['p50'] <= cost['p90'] <= cost['p99'] and cost['first'] > 0
        assert cost['flops'] > 1e6 and cost['parameters'] > 1e4 and cost['peak_memory'] > 100
        assert cost['training_seconds'] == pytest.approx(0.6)
    assert found['ours 2x12']['cost']['flops'] > found['ours 1x8']['cost']['flops']


def test_errors_stand_by_size_and_crowding_and_what_another_setting_mends(done):
    content = json.loads((done / 'compare.json').read_text())
    for one in content['detectors']:
        errors = one['errors']
        for groups in (errors['by_size'], errors['by_crowding']):
            assert sum(group['objects'] for group in groups.values()) == len(errors['found']) > 0
            assert all(sum(group[kind] for group in groups.values()) == number
                       for kind, number in errors['counts'].items())
    text = (done / 'compare.md').read_text()
    by_group = text.split('## Errors by size and crowding')[1].split('##')[0]
    assert by_group.count('| fcos, ') == 5
    mended, = [line for line in text.split('## What more boxes and steps mend')[1].splitlines() if '2x12' in line]
    cells = [cell.strip() for cell in mended.strip('|').split('|')]
    first, other = (one['errors'] for one in content['detectors'][:2])
    assert cells[:2] == ['ours 2x12', 'ours 1x8']
    assert int(cells[2]) - int(cells[3]) == sum(other['found']) - sum(first['found'])
    assert int(cells[-1]) == other['counts']['missed'] - first['counts']['missed']


def test_each_class_has_its_objects_and_the_ap_of_every_detector(done):
    found = {one['name']: one['class_ap'] for one in json.loads((done / 'compare.json').read_text())['detectors']}
    text = (done / 'compare.md').read_text()
    header, _, *rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in
                        text.split('## By class')[1].split('##')[0].splitlines() if line.startswith('|')]
    assert header == ['class', 'objects', *found]
    assert [row[0] for row in rows] == list(found['fcos'])
    assert f'{sum(int(row[1]) for row in rows)} objects' in text
    assert rows[0][2:] == [f'{of_one[rows[0][0]]:.3f}' for of_one in found.values()]


def test_what_could_not_be_tested_is_named_and_the_rest_compared(done):
    content = json.loads((done / 'compare.json').read_text())
    assert 'not of this config' in content['failures']['wrong']
    assert 'left out: wrong' in (done / 'compare.md').read_text()


def test_the_page_stands_alone(done):
    page = (done / 'compare.html').read_text()
    assert page.count('src="data:image/png;base64,') == 4  # curves, and a sheet of each
    assert 'src="http' not in page and 'href=' not in page
    rows = list(csv.DictReader((done / 'compare.csv').open()))
    assert len(rows) == 4 + 4 + 1 and {row['detector'] for row in rows} == {'ours 1x8', 'ours 2x12', 'fcos'}


def test_a_deviation_is_printed_where_there_are_two_of_something(done):
    lines = {line.split('|')[1].strip(): [cell.strip() for cell in line.split('|')[1:-1]]
             for line in (done / 'compare.md').read_text().splitlines() if line.startswith('| ')}
    text = (done / 'compare.md').read_text().split('## By class')[0]
    fcos = next(line for line in text.splitlines() if line.startswith('| fcos'))
    ours = next(line for line in text.splitlines() if line.startswith('| ours 1x8'))
    assert fcos.endswith('|  |  |') and not ours.endswith('|  |  |')
    assert 'ours 2x12' in lines


def test_each_seed_has_detections_of_its_own(done):
    found = {}
    for path in done.glob('cells/*/cell.json'):
        parts = json.loads(path.read_text())
        with np.load(path.parent / '00000.npz') as content:
            found.setdefault((parts['weights'], str(parts['setting'])), {})[parts['seed']] = content['bboxes'].tobytes()
    assert sorted(map(len, found.values())) == [1, 2, 2, 2, 2]  # FCOS draws nothing
    assert all(len(set(of_seeds.values())) == len(of_seeds) for of_seeds in found.values())


@pytest.mark.parametrize('change', ['model.test_cfg.score_thr=0.2', 'test_dataloader.batch_size=2'])
def test_what_changes_detections_has_them_made_anew(contest, done, tmp_path, change):
    config = Config.fromfile(contest.ours)
    key, value = change.split('=')
    config.merge_from_dict({key: float(value) if '.' in value else int(value)})
    shutil.copytree(done / 'cells', tmp_path / 'cells')
    before = set((tmp_path / 'cells').iterdir())
    one = Contest([Entry('ours', config, [str(contest.folder / 'ours_0.pth')])], tmp_path, settings=[DialSetting(1, 8)],
                  seeds=[0], device=torch.device('cpu'), num_draws=100)
    one._test(one.entries[0])
    assert len(set((tmp_path / 'cells').iterdir()) - before) == 1


def test_a_quick_look_leaves_the_key_of_a_training_alone(contest):
    config = Config.fromfile(contest.ours)
    before = config.pretty_text
    assert len(loader_of(config, 2).dataset) == 2
    assert config.pretty_text == before


def test_a_second_run_tests_nothing_again(contest, done, monkeypatch):
    monkeypatch.setattr(compare, 'measured_memory', lambda *_: None)
    before = {path: path.stat().st_mtime_ns for path in done.glob('cells/*/*.npz')}
    figures = json.loads((done / 'compare.json').read_text())['detectors'][0]['metrics']
    compare.main(arguments(contest, done))
    assert {path: path.stat().st_mtime_ns for path in done.glob('cells/*/*.npz')} == before
    assert json.loads((done / 'compare.json').read_text())['detectors'][0]['metrics'] == figures


def test_a_config_alone_is_trained_once_with_each_seed(contest, tmp_path, monkeypatch, capsys):
    config = tmp_path / 'short.py'
    data = f'{contest.folder}/shapes/'
    config.write_text(f"""
_base_ = {contest.ours!r}
train_dataloader = dict(num_workers=0, persistent_workers=False, batch_size=1, dataset=dict(data_root={data!r}))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root={data!r}))
val_evaluator = dict(ann_file={data!r} + 'annotations/val.json')
model = dict(bbox_head=dict(num_stages=1))
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=1))
""")
    monkeypatch.setattr(compare, 'measured_memory', lambda *_: None)
    args = ['--detector', f'ours={config}', '--train-seeds', '3', '--settings', '1x8', '--num-draws', '100', '--device',
            'cpu', '--out-dir', str(tmp_path / 'out')]
    assert compare.main(args) == 0
    checkpoint, = tmp_path.glob('out/trainings/ours_seed3_*/iter_2.pth')
    one, = json.loads((tmp_path / 'out' / 'compare.json').read_text())['detectors']
    assert one['cost']['training_seconds'] is None or one['cost']['training_seconds'] > 0
    (checkpoint.parent / 'ended').unlink()  # as if it had been killed before it ended: it goes on from its last one
    run = mock.Mock(return_value=mock.Mock(returncode=0))
    monkeypatch.setattr(compare.subprocess, 'run', run)
    assert compare.main(args) == 0 and compare.main(args) == 0
    (command, ), = (call.args for call in run.call_args_list)
    assert '--resume' in command and 'randomness.seed=3' in command
    run.return_value.returncode = 1
    with pytest.raises(SystemExit, match='no detector could be tested'):
        compare.main([*args, '--train-seeds', '4'])
    printed = capsys.readouterr().out
    assert 'ours is left out: SystemExit: the training of ours with seed 4 failed; its log is in' in printed


def test_other_annotations_are_another_training(tmp_path):
    file = tmp_path / 'train.json'
    config = Config(dict(train_dataloader=dict(dataset=dict(
        type='RepeatDataset', dataset=dict(data_root=str(tmp_path), ann_file='train.json')))))
    file.write_text('1')
    before = compare.annotations_digests(config)
    file.write_text('2')
    assert len(before) == 1 and compare.annotations_digests(config) != before


def test_what_no_training_can_mend_is_said_before_any(contest, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, 'train', mock.Mock(side_effect=AssertionError('trained')))
    wrong = tmp_path / 'wrong.py'
    wrong.write_text(f"_base_ = {contest.ours!r}\ntest_dataloader = dict(dataset=dict(ann_file='none.json'))\n")
    ours = ['--detector', f'ours={contest.ours}', '--train-seeds', '0', '--out-dir', tmp_path / 'out']
    assert 'none.json' in refusal(*ours, '--detector', f'wrong={wrong}')
    assert 'ours at 5000x10: sampling_timesteps must lie in 1..1000' in refusal(*ours, '--settings', '5000x10')


def test_addresses_of_checkpoints_stay_as_they_are(contest):
    address = 'https://download.openmmlab.com/a.pth'
    assert compare.entry([f'ours={contest.ours}', address]).checkpoints == [address]


def test_settings_are_taken_once_and_draws_are_not_too_few(capsys):
    args = compare.parse_args(['--detector', 'a', 'b', '--settings', '1x8', '1x8', '2x8'])
    assert [one.label for one in args.settings] == ['1x8', '2x8']
    with pytest.raises(SystemExit):
        compare.parse_args(['--detector', 'a', 'b', '--num-draws', '0'])
    assert "100 draws or more, got '0'" in capsys.readouterr().err


def refusal(*args):
    with pytest.raises(SystemExit) as raised:
        compare.main([str(arg) for arg in args])
    return str(raised.value)


def test_detectors_of_other_classes_or_images_are_refused(contest, tmp_path):
    one = ['--detector', f'ours={contest.ours}', contest.folder / 'ours_0.pth', '--out-dir', tmp_path / 'out']
    for key, value, words in (('metainfo', "dict(classes=('circle', 'b', 'c', 'd', 'e', 'f'))", 'has classes'),
                              ('indices', '3', 'not tested on the same images')):
        other = tmp_path / f'{key}.py'
        other.write_text(f'_base_ = {contest.ours!r}\ntest_dataloader = dict(dataset=dict({key}={value}))\n')
        assert words in refusal(*one, '--detector', f'other={other}', contest.folder / 'ours_0.pth')


def test_what_is_missing_is_said_before_anything_runs(contest, tmp_path):
    checkpoint = contest.folder / 'ours_0.pth'
    assert 'names no checkpoint' in refusal('--detector', contest.ours)
    assert 'none.pth' in refusal('--detector', contest.ours, tmp_path / 'none.pth')
    assert 'two detectors have one name' in refusal('--detector', contest.ours, checkpoint, '--detector', contest.ours,
                                                    checkpoint)
    assert 'diffusiondet_r50_fpn_coco' in refusal('--detector', 'diffusiondet_r50_fpn_coco', checkpoint)


def test_it_is_a_command_with_help():
    done = subprocess.run([sys.executable, '-m', 'mmdet_diffusion', 'compare', '--help'], cwd=REPOSITORY,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0 and '--detector' in done.stdout and '--peak-memory' not in done.stdout
