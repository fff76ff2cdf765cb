"""The commands that users type, run on a made data set as they would be."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mmdet
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmengine.config import Config

import mmdet_diffusion  # noqa: F401  lets torch.load read mmengine's checkpoints
from mmdet_diffusion.launch import refuse_unwritable_work_dir
from mmdet_diffusion.testing import REPOSITORY

CONFIG = 'configs/diffusiondet/diffusiondet_r18_fpn_1xb4-4k_shapes.py'
OURS = REPOSITORY / 'tools'
STOCK = Path(mmdet.__file__).parent / '.mim' / 'tools'


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'shapes'
    command = [sys.executable, OURS / 'dataset_converters' / 'make_shapes.py', folder, '--num-train', '12', '--num-val',
               '5', '--size', '64']
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope='module')
def options(shapes):
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    return [
        *(f'{loader}.dataset.data_root={shapes}/' for loader in loaders),
        *(f'{loader}.num_workers=0' for loader in loaders),
        *(f'{loader}.persistent_workers=False' for loader in loaders),
        *(f'{evaluator}.ann_file={shapes}/annotations/val.json' for evaluator in ('val_evaluator', 'test_evaluator')),
        'model.bbox_head.num_proposals=20', 'default_hooks.logger.interval=1', 'default_hooks.checkpoint.interval=2',
        'train_cfg.val_interval=100',
    ]


def run(script, *args, code=0, threads='1', **environment):
    """Run a script from the repository's root; gives what it printed."""
    result = subprocess.run([sys.executable, str(script), *map(str, args)], cwd=REPOSITORY, capture_output=True,
                            text=True, check=False, env=dict(os.environ, OMP_NUM_THREADS=threads, **environment))
    assert result.returncode == code, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


@pytest.fixture(scope='module')
def trained(options, tmp_path_factory):
    """Work folder of a training of 4 iterations and what it printed."""
    work_dir = tmp_path_factory.mktemp('work')
    printed = run(OURS / 'train.py', CONFIG, '--work-dir', work_dir, '--auto-scale-lr', '--cfg-options', *options,
                  'train_cfg.max_iters=4', 'train_cfg.val_interval=4')
    return work_dir, printed


@pytest.fixture(scope='module')
def checkpoint(trained):
    return trained[0] / 'iter_4.pth'


def test_training_logs_losses_saves_and_scores(trained):
    work_dir, printed = trained
    assert (work_dir / 'iter_4.pth').is_file()
    assert re.search(r'Iter\(train\) \[4/4\].* loss_iou: \d', printed)
    assert re.search(r'Iter\(val\).*coco/bbox_mAP: [\d.]+', printed)


def assert_trained_on(before, after):
    """The weights of the second checkpoint are those of the first after some small steps, not others; so is Adam's mean
    square gradient, of which an iteration replaces a thousandth."""
    one, two = torch.load(before), torch.load(after)
    moved = {name: (two['state_dict'][name] - value).abs().max().item() for name, value in one['state_dict'].items()
             if value.is_floating_point() and 'running' not in name}
    assert max(moved.values()) < 1e-3, max(moved, key=moved.get)  # weights drawn anew are at a tenth from each other
    assert moved['bbox_head.stages.0.fc_reg.weight'] > 0
    for number, state in one['optimizer']['state'].items():
        assert (two['optimizer']['state'][number]['exp_avg_sq'] >= 0.99 * state['exp_avg_sq']).all()


def test_resume_with_the_stock_script_goes_on_where_training_stopped(trained, options):
    work_dir, _ = trained
    printed = run(STOCK / 'train.py', CONFIG, '--work-dir', work_dir, '--resume', '--cfg-options', *options,
                  'train_cfg.max_iters=6', 'default_hooks.checkpoint.max_keep_ckpts=5')
    assert 'resumed epoch: 0, iter: 4' in printed
    assert re.findall(r'Iter\(train\) \[(\d)/6\]', printed) == ['5', '6']
    steps = torch.load(work_dir / 'iter_6.pth')['optimizer']['state'][0]['step']
    assert int(steps) == 6
    assert_trained_on(work_dir / 'iter_4.pth', work_dir / 'iter_6.pth')


def test_testing_writes_results_and_pictures(checkpoint, options, tmp_path):
    printed = run(OURS / 'test.py', Path(CONFIG).stem, checkpoint, '--work-dir', tmp_path, '--show-dir', 'shown',
                  '--out', tmp_path / 'results.pkl', '--cfg-options', *options, 'model.test_cfg.sampling_timesteps=4')
    assert re.search(r'Iter\(test\).*coco/bbox_mAP: [\d.]+', printed)
    assert (tmp_path / 'results.pkl').stat().st_size > 0
    assert len(list(tmp_path.rglob('*.png'))) >= 1


def test_test_time_augmentation_runs_with_the_stock_script(checkpoint, options, tmp_path):
    printed = run(STOCK / 'test.py', CONFIG, checkpoint, '--work-dir', tmp_path, '--tta', '--cfg-options', *options)
    assert re.search(r'Iter\(test\).*coco/bbox_mAP: [\d.]+', printed)


def test_publishing_keeps_the_weights_and_drops_the_rest(checkpoint, tmp_path):
    run(OURS / 'model_converters' / 'publish_model.py', checkpoint, tmp_path / 'published.pth')
    published, = tmp_path.glob('published-*.pth')
    content, original = torch.load(published), torch.load(checkpoint)
    assert 'optimizer' not in content
    assert all(torch.equal(value, original['state_dict'][name]) for name, value in content['state_dict'].items())


def test_flops_are_counted_without_further_arguments(options):
    printed = run(STOCK / 'analysis_tools' / 'get_flops.py', CONFIG, '--num-images', '1', '--cfg-options', *options)
    assert re.search(r'Flops:\s*[\d.]+[GM]', printed)


@pytest.fixture(scope='module')
def results(checkpoint, options, tmp_path_factory):
    file = tmp_path_factory.mktemp('results') / 'results.pkl'
    run(STOCK / 'test.py', CONFIG, checkpoint, '--work-dir', file.parent, '--out', file, '--cfg-options', *options)
    return file


def test_results_can_be_analysed(results, options, tmp_path):
    run(STOCK / 'analysis_tools' / 'analyze_results.py', CONFIG, results, tmp_path, '--topk', '2', '--cfg-options',
        *options)
    assert {path.parent.name for path in tmp_path.rglob('*.png')} == {'good', 'bad'}


def test_a_confusion_matrix_is_drawn(results, options, tmp_path):
    run(STOCK / 'analysis_tools' / 'confusion_matrix.py', CONFIG, results, tmp_path, '--cfg-options', *options,
        MPLBACKEND='agg')
    assert (tmp_path / 'confusion_matrix.png').stat().st_size > 0


def test_the_data_set_can_be_looked_at(options, tmp_path):
    run(STOCK / 'analysis_tools' / 'browse_dataset.py', CONFIG, '--not-show', '--output-dir', tmp_path, '--cfg-options',
        *options)
    assert len(list(tmp_path.rglob('*.png'))) == 12


def test_the_config_is_printed_with_its_overrides():
    printed = run(STOCK / 'misc' / 'print_config.py', CONFIG, '--cfg-options', 'model.test_cfg.eta=0.25')
    assert "type='DynamicDiffusionHead'" in printed and 'eta=0.25' in printed


def test_a_work_folder_that_cannot_be_made_stops_the_training_at_once(tmp_path):
    (tmp_path / 'file').touch()
    printed = run(OURS / 'train.py', CONFIG, '--work-dir', tmp_path / 'file' / 'work', code=1)
    assert f'file/work cannot be made: {tmp_path}/file is no folder. Give another folder' in printed
    assert 'Traceback' not in printed


@pytest.mark.parametrize(('args', 'origin'), [
    (['config.py', '--work-dir=work_dirs/a'], '--work-dir work_dirs/a'),
    (['config.py', 'model.pth', '--cfg-options', 'work_dir=work_dirs/b'], 'work_dir of the config, work_dirs/b'),
    (['--local-rank=0', 'config.py'], 'work_dir of the config, work_dirs/c'),
    (['unnamed.py'], 'the work folder work_dirs/unnamed'),
    (['unnamed.py', '--work-d', 'work_dirs/d'], '--work-dir work_dirs/d'),
])
def test_every_origin_of_a_work_folder_is_checked(tmp_path, monkeypatch, args, origin):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'config.py').write_text("work_dir = 'work_dirs/c'")
    (tmp_path / 'unnamed.py').touch()
    refuse_unwritable_work_dir(args)  # can be made
    (tmp_path / 'work_dirs').touch()
    with pytest.raises(SystemExit, match=re.escape(f'{origin} cannot be made: {tmp_path}/work_dirs is no folder')):
        refuse_unwritable_work_dir(args)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['config.py', 'unnamed.py', 'work_dirs']


def test_inferencer_takes_a_config_object_and_a_checkpoint(checkpoint, shapes):
    inferencer = DetInferencer(model=Config.fromfile(REPOSITORY / CONFIG), weights=str(checkpoint), device='cpu',
                               show_progress=False)
    image = np.zeros((48, 64, 3), dtype=np.uint8)
    prediction, = inferencer(image, no_save_vis=True)['predictions']
    assert len(prediction['bboxes']) == len(prediction['scores']) > 0


def test_the_dial_has_a_row_per_setting_and_a_second_run_computes_nothing_again(checkpoint, options, tmp_path):
    def turn():
        return run(OURS / 'analysis_tools' / 'dial.py', Path(CONFIG).stem, checkpoint, '--settings', '1x20', '2x40',
                   '--eta', '0', '1', '--seeds', '0', '1', '--controls', '--under-ms', '60000', '--num-draws', '100',
                   '--out-dir', tmp_path, '--cfg-options', *options)

    printed = turn()
    rows = re.findall(r'^\| (\d+x\d+[^|]*?) \|', printed, re.MULTILINE)
    assert rows[:4] == ['1x20, eta 0.0', '1x20', '2x40, eta 0.0', '2x40'] and '1x80, as many boxes in one step' in rows
    assert re.search(r'Best AP under 60000 ms: .*--cfg-options model.test_cfg.sampling_timesteps=', printed)
    content = json.loads((tmp_path / 'dial.json').read_text())
    assert [len(row['metrics']['AP']) for row in content['settings']] == [2] * len(rows)
    assert {path.name for path in tmp_path.iterdir()} == {'cells', 'dial.md', 'dial.json', 'dial.csv', 'dial.png',
                                                         'made_of.json'}
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob('cells/*/*.npz')}
    assert turn().split('# The dial')[1] == printed.split('# The dial')[1]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob('cells/*/*.npz')} == times


def test_the_dial_gives_the_figures_of_another_evaluator_too(checkpoint, options, tmp_path):
    config = tmp_path / 'voc.py'
    config.write_text(f'_base_ = {str(REPOSITORY / CONFIG)!r}\n'
                      "test_evaluator = dict(_delete_=True, type='VOCMetric', metric='mAP', eval_mode='11points')\n")
    mine = [option for option in options if not option.startswith('test_evaluator')]
    run(OURS / 'analysis_tools' / 'dial.py', config, checkpoint, '--settings', '1x20', '--num-draws', '100',
        '--out-dir', tmp_path / 'out', '--cfg-options', *mine)
    metrics = json.loads((tmp_path / 'out' / 'dial.json').read_text())['settings'][0]['metrics']
    assert {'AP', 'AP50', 'pascal_voc/mAP'} <= set(metrics)


def test_the_dial_names_a_set_without_objects_before_it_tests(checkpoint, options, shapes, tmp_path):
    content = json.loads((shapes / 'annotations' / 'val.json').read_text())
    (tmp_path / 'empty.json').write_text(json.dumps(dict(content, annotations=[])))
    printed = run(OURS / 'analysis_tools' / 'dial.py', CONFIG, checkpoint, '--settings', '1x20', '--out-dir',
                  tmp_path / 'out', '--cfg-options', *options,
                  f'test_dataloader.dataset.ann_file={tmp_path}/empty.json', code=1)
    assert re.search(r'empty\.json has no object of circle.*nothing to score by', printed)
    assert not (tmp_path / 'out').exists()


def test_the_dial_refuses_a_checkpoint_of_another_model(options, tmp_path):
    torch.save(dict(state_dict=torch.nn.Linear(1, 1).state_dict()), tmp_path / 'other.pth')
    printed = run(OURS / 'analysis_tools' / 'dial.py', CONFIG, tmp_path / 'other.pth', '--settings', '1x20',
                  '--out-dir', tmp_path, '--cfg-options', *options, code=1)
    assert re.search(r'other.pth is not of this config: it lacks \d+ tensors', printed)


def test_two_pictures_are_drawn(checkpoint, options, tmp_path):
    run(OURS / 'visualizations' / 'draw_denoising.py', Path(CONFIG).stem, checkpoint, '--out-dir', tmp_path, '--images',
        '2', '--min-objects', '1', '--device', 'cpu', '--cfg-options', *options)
    assert {path.name for path in tmp_path.glob('*.png')} == {'detections.png', 'denoising.png'}


def test_classes_that_do_not_match_stop_the_training_at_once(options, tmp_path):
    printed = run(OURS / 'train.py', CONFIG, '--work-dir', tmp_path, '--cfg-options', *options,
                  'model.bbox_head.num_classes=7', code=1)
    assert 'has 6 classes' in printed and 'num_classes=7' in printed
    assert not re.search(r'Iter\(train\)', printed)


# What each process of a training drew, logged and ended with.
RECORDER = """
import json
import mmdet_diffusion
from mmdet.registry import HOOKS
from mmdet_diffusion.launch import run_mmdet_tool
from mmdet_diffusion.task_modules import DiffusionBoxSampler
from mmengine.dist import get_rank
from mmengine.hooks import Hook

noise, losses, draw_training = [], [], DiffusionBoxSampler.draw_training

def recording_draw(self, *args, **kwargs):
    draws = draw_training(self, *args, **kwargs)
    noise.append(draws.noise.double().sum().item())
    return draws

DiffusionBoxSampler.draw_training = recording_draw

@HOOKS.register_module()
class RecordHook(Hook):
    priority = 'LOWEST'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        losses.append({name: value.item() for name, value in outputs.items()})

    def after_train(self, runner):
        weights = [parameter.detach().double().sum().item() for parameter in runner.model.parameters()]
        with open(f'{runner.work_dir}/{runner.iter}_rank{get_rank()}.json', 'w') as file:
            json.dump(dict(noise=noise, losses=losses, weights=weights), file)

run_mmdet_tool('train.py')
"""


def train_on_two_processes(folder, options, max_iters, *args):
    script = folder / 'train_recorded.py'
    script.write_text(RECORDER)
    launch = ['-m', 'torch.distributed.run', '--nproc_per_node=2', '--standalone']
    command = [sys.executable, *launch, str(script), CONFIG, '--work-dir', str(folder), '--launcher', 'pytorch', *args,
               '--cfg-options', *options, 'env_cfg.dist_cfg.backend=gloo', f'train_cfg.max_iters={max_iters}',
               'default_hooks.record.type=RecordHook', 'model_wrapper_cfg.device_ids=None']
    environment = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert 'process group has NOT been destroyed' not in result.stderr  # else gloo's threads may abort a finished run
    return [json.loads((folder / f'{max_iters}_rank{rank}.json').read_text()) for rank in (0, 1)]


@pytest.fixture(scope='module')
def folder_of_two(tmp_path_factory):
    return tmp_path_factory.mktemp('two')


@pytest.fixture(scope='module')
def two_processes(options, folder_of_two):
    options = [*options, 'default_hooks.checkpoint.max_keep_ckpts=2']
    started = train_on_two_processes(folder_of_two, options, 2)
    return started, train_on_two_processes(folder_of_two, options, 4, '--resume')


def test_two_processes_draw_different_noise(two_processes):
    for one, other in two_processes:
        assert len(one['noise']) == 2
        assert not set(one['noise']) & set(other['noise'])


def test_two_processes_log_equal_losses_and_keep_equal_weights(two_processes):
    for one, other in two_processes:
        assert one['losses'] == other['losses']
        assert one['weights'] == other['weights']


def test_two_processes_resume_where_they_stopped(two_processes, folder_of_two):
    _, (after, _) = two_processes
    assert len(after['losses']) == 2
    assert_trained_on(folder_of_two / 'iter_2.pth', folder_of_two / 'iter_4.pth')
