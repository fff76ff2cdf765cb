"""Fine-tuning: a converted COCO checkpoint as the start for other classes."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

from mmdet_diffusion.testing import (
    REPOSITORY,
    build_detector,
    load_config,
    load_tool,
    shrink_to_recorded_r50,
    small_model_cfg,
)

CONFIG = 'diffusiondet_r50_fpn_finetune_1xb4-5k_custom.py'
CHECKPOINT = REPOSITORY / 'tests' / 'data' / 'golden' / 'mini_r50' / 'checkpoint.pth'
NUM_STAGES = 3
NEW = {f'bbox_head.stages.{stage}.fc_cls.{kind}' for stage in range(NUM_STAGES) for kind in ('weight', 'bias')}


def make_images(folder, number=4):
    """Noise with a box each, of the classes that the config names."""
    (folder / 'images').mkdir(parents=True)
    (folder / 'annotations').mkdir()
    generator = np.random.default_rng(0)
    for index in range(number):
        pixels = generator.integers(256, size=(48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / 'images' / f'{index}.png')
    content = dict(
        images=[dict(id=index, file_name=f'{index}.png', height=48, width=64) for index in range(number)],
        categories=[dict(id=1, name='first'), dict(id=2, name='second')],
        annotations=[dict(id=index + 1, image_id=index, category_id=1 + index % 2, bbox=[8, 8, 24, 24], area=576,
                          iscrowd=0) for index in range(number)])
    for split in ('train', 'val'):
        (folder / 'annotations' / f'{split}.json').write_text(json.dumps(content))


def fine_tuning_cfg(folder):
    """The config with the small model's sizes, images of 64 pixels and the converted small checkpoint."""
    cfg = load_config(CONFIG)
    cfg.load_from, cfg.work_dir = str(folder / 'converted.pth'), str(folder / 'work')
    shrink_to_recorded_r50(cfg.model)
    resize = dict(type='Resize', scale=(64, 64), keep_ratio=True)
    cfg.train_dataloader.dataset.pipeline[3], cfg.val_dataloader.dataset.pipeline[1] = resize, resize
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
        loader.dataset.data_root = f'{folder}/'
    cfg.val_evaluator.ann_file = f'{folder}/annotations/val.json'
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.default_hooks.logger.interval = 1
    return cfg


class Snapshot(Hook):
    """Keeps the weights that training starts from."""

    def before_train(self, runner):
        self.state = {name: value.clone() for name, value in runner.model.state_dict().items()}


def fine_tune(folder, meta):
    """The converted checkpoint, the weights that training starts from, the runner after two iterations, and the log."""
    tool = load_tool('model_converters/diffusiondet_to_mmdet.py')
    make_images(folder)
    converted = tool.convert(tool.read_source(CHECKPOINT).state)
    tool.write(converted, meta, folder / 'converted.pth')
    runner, snapshot = Runner.from_cfg(fine_tuning_cfg(folder)), Snapshot()
    runner.register_hook(snapshot, 'VERY_LOW')
    runner.train()
    log, = (folder / 'work').glob('*/*.log')
    return SimpleNamespace(converted=converted, start=snapshot.state, runner=runner, log=log.read_text())


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """From a checkpoint that names no classes."""
    return fine_tune(tmp_path_factory.mktemp('fine_tuning'), {})


def test_a_class_that_the_checkpoint_has_too_starts_from_its_class_layers(tmp_path):
    run = fine_tune(tmp_path, dict(dataset_meta=dict(classes=('other', 'Second', 'third'))))
    for name in NEW:
        assert torch.equal(run.start[name][1], run.converted[name][1])
        assert not torch.equal(run.start[name][0], run.converted[name][0])
    assert '1 of 2 classes start from the class layers of the checkpoint: second;' in run.log
    assert 'have another shape' not in run.log


def test_all_but_the_class_layers_start_from_the_checkpoint(run):
    assert {name for name, value in run.converted.items() if not value.equal(run.start[name])} == NEW
    assert all(name in run.converted or name.endswith('num_batches_tracked') for name in run.start)


def test_the_class_layers_start_at_the_prior(run):
    biases = [value for name, value in run.start.items() if name.endswith('fc_cls.bias')]
    assert len(biases) == NUM_STAGES
    for bias in biases:
        torch.testing.assert_close(bias.sigmoid(), torch.full((2, ), 0.01))


def test_the_log_names_the_class_layers_and_nothing_else_as_left_out(run):
    (number, names), = re.findall(r'WARNING - (\d+) tensors of the checkpoint have another shape .*: (.*)', run.log)
    assert int(number) == len(NEW) and set(names.split(', ')) == NEW
    assert 'no place in the model' not in run.log and 'not in the checkpoint' not in run.log


def test_training_goes_on_from_there(run):
    assert 0 < run.runner.message_hub.get_scalar('train/loss').current() < 1e4
    assert run.runner.message_hub.get_scalar('val/coco/bbox_mAP').current() >= 0
    moved = {name for name, value in run.runner.model.state_dict().items() if not value.equal(run.start[name])}
    assert moved > NEW
    assert not [name for name in moved if name.startswith('backbone.layer1.')]  # frozen as in the paper's training


def test_the_class_layers_learn_at_ten_times_the_rate(run):
    names = {id(parameter): name for name, parameter in run.runner.model.named_parameters()}
    rates = {names[id(parameter)]: group['lr'] for group in run.runner.optim_wrapper.optimizer.param_groups
             for parameter in group['params']}
    assert set(rates) > NEW
    assert {name for name, rate in rates.items() if rate == max(rates.values())} == NEW
    assert max(rates.values()) == pytest.approx(10 * min(rates.values()))


def test_backbone_and_neck_can_come_from_another_detector(tmp_path):
    other = build_detector(small_model_cfg(num_classes=7, num_stages=1), seed=1).state_dict()
    torch.save(dict(state_dict=other), tmp_path / 'other.pth')
    cfg = small_model_cfg()
    for part in ('backbone', 'neck'):
        cfg[part].init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'other.pth'), prefix=f'{part}.')
    started = build_detector(cfg, seed=2).state_dict()
    same = {name for name, value in started.items() if name in other and value.equal(other[name])}
    assert {name for name in started if name.startswith(('backbone.', 'neck.'))} <= same
    assert 'bbox_head.stages.0.fc_cls.weight' not in same
