"""Command lines of README.md and docs are run, in the order of their document, on a small model and few pictures.

A small config stands in the place of those that are named, random weights in that of checkpoints. What cannot be run so
is in ``ELSEWHERE``, with the test that runs the program.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from documented_code import COMMAND_LINES
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from PIL import Image

from mmdet_diffusion import config_path, list_configs
from mmdet_diffusion.testing import REPOSITORY, load_tool

pytestmark = pytest.mark.slow
SHAPES = 'diffusiondet_r18_fpn_1xb4-4k_shapes'
SMALL = """
_base_ = {base!r}
train_dataloader = dict(num_workers=0, persistent_workers=False, batch_size=2)
val_dataloader = test_dataloader = dict(num_workers=0, persistent_workers=False, batch_size=2)
model = dict(
    channels_last=False,
    backbone=dict(base_channels=8, stem_channels=8),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(
        feat_channels=16, num_proposals=10, num_stages=2, stage=dict(feedforward_channels=32, dynamic_dim=8),
        roi_extractor=dict(out_channels=16)),
    auxiliary_head=dict(in_channels=16, feat_channels=16))
train_cfg = dict(max_iters=2, val_interval=2)
"""
# Lines that this test does not run: a pattern, and the test that runs the program, or else why none does.
ELSEWHERE = {
    r'(pip|git|mkdir|cp|for|do|done|export|python3.11|\.)( .*)?': 'no program of this project',
    r'make .*': 'tests/test_tools/test_makefile.py',
    r'mmdet-diffusion demo': 'tests/test_tools/test_demo.py',
    r'(srun )?torchrun .*': 'tests/test_main_job.py',
    r'python \$MMDET/train.py .*': 'tests/test_main_job.py',
    # Its fresh processes, one a detector and setting, take minutes.
    r'mmdet-diffusion compare .*': 'tests/test_tools/test_compare_detectors.py',
    r'mmdet-diffusion web .*': 'tests/test_web/test_web_command.py',
    r'mmdet-diffusion operators --install': 'tests/test_mmcv_stand_in/test_startup.py',
    r'mmdet-diffusion convert .*': 'tests/test_tools/test_diffusiondet_to_mmdet.py',
    r'python tools/model_converters/diffusiondet_to_mmdet.py .*': 'tests/test_tools/test_diffusiondet_to_mmdet.py',
    r'python tools/dataset_converters/voc_to_coco.py .*': 'tests/test_tools/test_voc_to_coco.py',
    r'python tools/dataset_converters/crowdhuman_to_coco.py .*': 'tests/test_crowdhuman.py',
    r'mmdet-diffusion predict CONFIG CHECKPOINT 0': 'a camera; tests/test_tools/test_predict.py has one that is made',
    r'python tools/analysis_tools/measure_carried_boxes.py .*': 'tests/test_tools/test_predict.py',
    r'python tools/analysis_tools/benchmark_head.py .*': 'tests/test_tools/test_benchmark.py',
    r'python tools/analysis_tools/benchmark_export.py .*': 'tests/test_deployment/test_export_command.py',
    # The config takes photographs that are made for no test; the lines of first_hour.md run the same commands.
    r'python tools/train.py configs/diffusiondet/diffusiondet_r50_fpn_finetune_1xb4-5k_custom.py':
        'tests/test_fine_tuning.py',
}


def elsewhere(words):
    """What runs a line if not this test, or None."""
    line = ' '.join(words)
    return next((place for pattern, place in ELSEWHERE.items() if re.fullmatch(pattern, line)), None)


WRONG = ['mmdet-diffusion', 'test', 'CONFIG.py', 'none.pth']  # run besides, to see that a failure is seen
HERE = [(block, words) for block, words in COMMAND_LINES if elsewhere(words) is None]


def small(words):
    """A line with the small config, its weights and its work folder in place of those that it names."""
    if words[:2] == ['mmdet-diffusion', 'configs']:
        return words
    line = []
    for word in words:
        name, _, value = word.rpartition('=')
        if value.startswith('my_configs/') or Path(value).name.removesuffix('.py') in ('CONFIG', *list_configs()):
            word = f'{name}=CONFIG.py' if name else 'CONFIG.py'
        elif word in ('CHECKPOINT', '$CHECKPOINT') or word.endswith('.pth'):
            word = 'CHECKPOINT.pth'
        elif word == 'FILE':  # of --resume
            word = 'work_dirs/CONFIG/iter_2.pth'
        line.append(word)
    return line


def prepare(folder):
    """What the lines of a document find in the current folder."""
    load_tool('dataset_converters/make_shapes.py').make_set(folder / 'data' / 'shapes', num_train=4, num_val=2, size=64)
    for name in ('bccd/annotations/train.json', 'bccd/annotations/val.json', 'mine/annotations.json'):
        file = folder / 'data' / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(folder / 'data' / 'shapes' / 'annotations' / 'train.json')
    for name in ('bccd', 'mine'):
        (folder / 'data' / name / 'images').symlink_to('../shapes/train')
    (folder / 'CONFIG.py').write_text(SMALL.format(base=config_path(SHAPES)))
    register_all_modules(init_default_scope=True)
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(folder / 'CONFIG.py').model)
    torch.save(dict(state_dict=model.state_dict()), folder / 'CHECKPOINT.pth')
    for name in ('holiday.jpg', 'folder/a.jpg', 'more/deep/b.png', 'pictures/c.png', 'data/shapes/val/000001.png'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (64, 48), 'red').save(folder / name)
    video = cv2.VideoWriter(str(folder / 'clip.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 10, (64, 48))
    for shade in (0, 80, 160):
        video.write(np.full((48, 64, 3), shade, np.uint8))
    video.release()


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """Status and output of each line of ``HERE``."""
    folders = {}
    for block, _ in HERE:
        if block.document not in folders:
            folders[block.document] = tmp_path_factory.mktemp(Path(block.document).stem)
            prepare(folders[block.document])
    lines, out = (tmp_path_factory.mktemp('lines') / name for name in ('lines.json', 'out.json'))
    lines.write_text(json.dumps([(str(folders[block.document]), small(words)) for block, words in HERE]
                                + [(str(folders['README.md']), WRONG)]))
    # One thread and no GPU: a process that forks must not have them.
    done = subprocess.run([sys.executable, Path(__file__).parent / 'run_in_forks.py', lines, out], text=True,
                          env=dict(os.environ, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='',
                                   MAX_ITERS='2'),
                          capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize('place', range(len(HERE)), ids=[f'{block}-{words[1]}' for block, words in HERE])
def test_a_line_of_the_documents_runs(results, place):
    status, output = results[place]
    if status == 1 and 'is bfloat16, but this CPU has no instructions for it' in output:
        pytest.skip('no bfloat16 here')
    assert status == 0, f'{" ".join(small(HERE[place][1]))}\n{output}'


def test_a_line_that_fails_is_seen(results):
    status, output = results[-1]
    assert status == 1 and 'none.pth' in output


def test_a_line_that_is_not_run_here_is_run_by_another_test():
    for pattern, place in ELSEWHERE.items():
        assert any(re.fullmatch(pattern, ' '.join(words)) for _, words in COMMAND_LINES), f'no line is {pattern}'
        for file in re.findall(r'tests/\S+\.py', place):
            assert (REPOSITORY / file).is_file(), file
    assert len(HERE) > 30
