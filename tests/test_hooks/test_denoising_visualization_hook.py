"""Pictures of the denoising and metrics over the dial, through mmengine's runner and its backends of visualisation."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmdet_diffusion.hooks import DenoisingVisualizationHook
from mmdet_diffusion.hooks import denoising_visualization_hook as hook_module
from mmdet_diffusion.testing import REPOSITORY, load_tool

SHAPES = REPOSITORY / 'configs' / 'diffusiondet' / 'diffusiondet_r18_fpn_1xb4-4k_shapes.py'
HOOK = dict(type='DenoisingVisualizationHook', settings=['1x8', '2x12'], picture_setting='2x10', num_images=3, panel=64)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'shapes'
    load_tool('dataset_converters/make_shapes.py').make_set(folder, num_train=4, num_val=5, size=64)
    return folder


def runner_of(data, work_dir, hooks, backends=({'type': 'LocalVisBackend'}, ), **changes):
    """Two iterations of training, with a validation after each."""
    register_all_modules(init_default_scope=True)
    config = Config.fromfile(SHAPES)
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
        loader.dataset.data_root = f'{data}/'
        loader.dataset.pop('dataset', None)
    config.val_evaluator.ann_file = f'{data}/annotations/val.json'
    config.train_cfg.update(max_iters=2, val_interval=1)
    config.model.bbox_head.update(num_proposals=10, num_stages=2)
    config.model.update(channels_last=False)
    config.model.test_cfg.update(num_proposals=None)
    config.default_hooks.logger.interval = 1
    config.merge_from_dict(dict(
        work_dir=str(work_dir), custom_hooks=[*config.get('custom_hooks', []), *hooks], randomness=dict(seed=0),
        visualizer=dict(type='DetLocalVisualizer', vis_backends=list(backends), name=str(work_dir)),
        experiment_name=re.sub(r'\W', '_', str(work_dir)), **changes))
    return Runner.from_cfg(config)


def scalars(work_dir):
    """What mmengine logged."""
    path, = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def runs(data, tmp_path_factory):
    """A training with the hook, and one without."""
    folders = {}
    for name, hooks in (('with', [HOOK]), ('without', [])):
        folders[name] = tmp_path_factory.mktemp(name)
        runner = runner_of(data, folders[name], hooks)
        runner.train()
        assert runner.model.bbox_head.test_cfg['num_proposals'] is None
        assert 'extract_feat' not in vars(runner.model)
    return folders


def test_metrics_of_each_setting_stand_beside_those_of_validation(runs):
    entries = [entry for entry in scalars(runs['with']) if 'coco/bbox_mAP' in entry]
    assert len(entries) == 2
    for entry in entries:
        names = [name for name in entry if name.startswith('coco/')]
        plain = [name for name in names if not re.search(r'_\d+x\d+$', name)]
        assert sorted(names) == sorted([*plain, *(f'{name}_{at}' for name in plain for at in HOOK['settings'])])


def test_training_and_validation_are_those_without_it(runs):
    for name in ('loss', 'coco/bbox_mAP', 'coco/bbox_mAP_50', 'grad_norm'):
        values = [[entry[name] for entry in scalars(runs[run]) if name in entry] for run in ('with', 'without')]
        assert len(values[0]) == 2 and values[0] == values[1], name
    weights = [torch.load(runs[run] / 'iter_2.pth', weights_only=False)['state_dict'] for run in ('with', 'without')]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_the_first_images_are_drawn_once_a_validation(runs):
    files = sorted(path.name for path in runs['with'].rglob('vis_image/*.png'))
    assert len(files) == 3 * 2 and all(re.fullmatch(r'denoising_\w+_[12]\.png', name) for name in files)
    panels = np.asarray(Image.open(next(runs['with'].rglob(f'vis_image/{files[0]}'))))
    assert panels.shape[0] > 2 * 64 and panels.shape[1] > 3 * 64  # a row a step, a column a stage
    assert len(np.unique(panels.reshape(-1, 3), axis=0)) > 100


def test_files_that_metrics_write_are_each_setting_s_own(data, tmp_path):
    prefix = str(tmp_path / 'val')
    runner = runner_of(data, tmp_path / 'work', [dict(HOOK, num_images=0, settings=['1x3'])],
                       **{'val_evaluator.outfile_prefix': prefix, 'model.test_cfg.nms': None})
    runner.val()
    numbers = {name: len(json.loads(Path(f'{name}.bbox.json').read_text())) for name in (prefix, f'{prefix}_1x3')}
    assert numbers == {prefix: 5 * 10, f'{prefix}_1x3': 5 * 3}


@pytest.mark.parametrize('change', [lambda pixels: pixels.float() + 0.4, lambda pixels: pixels[:1]],
                         ids=['float', 'grey'])
def test_pictures_of_any_type_are_drawn(monkeypatch, change):
    seen = []
    monkeypatch.setattr(hook_module, 'follow_boxes', lambda model, data: [[]])
    monkeypatch.setattr(hook_module, 'on_picture', lambda moments, sample, picture, panel: (picture, ))
    monkeypatch.setattr(hook_module, 'draw_story', lambda picture, _: seen.append(np.asarray(picture)) or picture)
    monkeypatch.setattr(hook_module, '_add_image', lambda *_: None)
    pixels = torch.arange(3 * 4 * 5, dtype=torch.uint8).reshape(3, 4, 5)
    DenoisingVisualizationHook()._draw(None, None, [change(pixels)], dict(data_samples=[dict(img_path='a.png')]))
    expected = pixels[:1].expand(3, -1, -1) if len(change(pixels)) == 1 else pixels.flip(0)
    assert (seen[0] == expected.permute(1, 2, 0).numpy()).all()


def test_ap_of_a_setting_is_that_of_a_validation_at_it(data, tmp_path):
    """And the backbone runs once more a batch for all settings, and once for the pictures."""
    runner = runner_of(data, tmp_path / 'hook', [HOOK])
    calls = []
    runner.model.backbone.register_forward_hook(lambda *_: calls.append(1))
    found = runner.val()
    assert len(calls) == 2 * 3 + 2  # three batches, the pictures of two
    for setting, (steps, boxes) in (('1x8', (1, 8)), ('2x12', (2, 12))):
        runner.model.bbox_head.test_cfg.update(sampling_timesteps=steps, num_proposals=boxes, seed=0)
        runner._hooks = [hook for hook in runner.hooks if not isinstance(hook, DenoisingVisualizationHook)]
        assert runner.val()['coco/bbox_mAP_50'] == found[f'coco/bbox_mAP_50_{setting}']


def test_tensorboard_has_pictures_and_figures(data, tmp_path):
    runner_of(data, tmp_path, [HOOK], [dict(type='TensorboardVisBackend')]).train()
    folder, = tmp_path.glob('*/vis_data')
    events = EventAccumulator(str(folder))
    events.Reload()
    assert {'coco/bbox_mAP_1x8', 'coco/bbox_mAP_2x12', 'coco/bbox_mAP'} <= set(events.Tags()['scalars'])
    tags = [tag for tag in events.Tags()['images'] if tag.startswith('denoising_')]
    assert len(tags) == 3
    assert [event.step for event in events.Images(tags[0])] == [1, 2]
    assert [event.step for event in events.Scalars('coco/bbox_mAP_1x8')] == [1, 2]


def test_mlflow_has_pictures_and_figures(data, tmp_path, monkeypatch):
    mlflow = pytest.importorskip('mlflow')
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    store = f'file://{tmp_path}/store'
    backend = dict(type='MLflowVisBackend', exp_name='shapes', tracking_uri=store, artifact_suffix=())
    runner_of(data, tmp_path / 'work', [HOOK], [backend]).train()
    mlflow.end_run()
    run, = mlflow.MlflowClient(store).search_runs(
        [experiment.experiment_id for experiment in mlflow.MlflowClient(store).search_experiments()])
    assert {'coco/bbox_mAP_1x8', 'coco/bbox_mAP_2x12'} <= set(run.data.metrics)
    pictures = [path.name for path in (tmp_path / 'store').rglob('denoising_*.png')]
    assert len(pictures) == 3 * 2 and {name[-10:] for name in pictures} == {'000001.png', '000002.png'}


@pytest.mark.parametrize(('changes', 'refusal'), [
    (dict(settings=['1x8', '4 x 3']), "'4 x 3' is not STEPSxBOXES, such as 4x100"),
    (dict(picture_setting='x'), "'x' is not STEPSxBOXES"), (dict(settings=[(1, 8)]), 'is not STEPSxBOXES'),
    (dict(num_images=-1), 'num_images of DenoisingVisualizationHook must be an integer of at least 0, got -1'),
    (dict(panel=3), 'panel of DenoisingVisualizationHook must be an integer of at least 16, got 3'),
    (dict(score_thr=False), r'score_thr of DenoisingVisualizationHook must be in \[0, 1\), got False'),
    (dict(score_thr=1), r'score_thr of DenoisingVisualizationHook must be in \[0, 1\), got 1')])
def test_what_is_wrong_shows_when_it_is_built(changes, refusal):
    with pytest.raises(ValueError, match=refusal):
        DenoisingVisualizationHook(**changes)


def test_more_steps_than_trained_or_another_detector_are_refused_at_the_start(data, tmp_path):
    runner = runner_of(data, tmp_path, [dict(HOOK, settings=['2000x8'])])
    with pytest.raises(ValueError, match='2000'):
        runner.call_hook('before_run')
    runner.model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match='needs a DiffusionDet, got Linear; take the hook out of custom_hooks'):
        DenoisingVisualizationHook().before_run(runner)
