"""Trainings that are ended from within, as programs of their own: tools/train.py that notes what it draws."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from mmdet_diffusion.testing import REPOSITORY

CONFIG = 'configs/diffusiondet/diffusiondet_r18_fpn_1xb4-4k_shapes.py'
TORCHRUN = ['-m', 'torch.distributed.run']
ITERATIONS = 7

# END_AT, of the environment, says where a process ends itself by SIGKILL: {"iteration": 3, "rank": 1}, after that
# iteration, or {"file": "iter_4.pth", "time": 1}, when half of the content has been written to it for that time. With
# "errno" that write raises instead; with "replace": [PATH, OTHER] the first becomes the second after the iteration.
PROGRAM = """
import builtins, json, os, signal
from pathlib import Path
import mmdet_diffusion
from mmdet.registry import HOOKS
from mmdet_diffusion.launch import run_mmdet_tool
from mmdet_diffusion.task_modules import DiffusionBoxSampler
from mmengine.dist import get_rank
from mmengine.hooks import Hook

end_at = json.loads(os.environ.get('END_AT', '{}'))
if int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)):
    end_at = {}
noise = []
draw_training, stock_open = DiffusionBoxSampler.draw_training, open


def recording_draw(self, *args, **kwargs):
    draws = draw_training(self, *args, **kwargs)
    noise.append(draws.noise.double().sum().item())
    return draws


def opening(file, mode='r', *args, **kwargs):
    opened = stock_open(file, mode, *args, **kwargs)
    if 'w' in mode and isinstance(file, (str, Path)) and Path(file).name.split('.part')[0] == end_at.get('file'):
        end_at['time'] -= 1
        if end_at['time'] == 0:
            return Ending(opened)
    return opened


class Ending:
    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def write(self, content):
        self.file.write(content[:len(content) // 2])
        self.file.flush()
        if 'errno' in end_at:
            raise OSError(end_at['errno'], os.strerror(end_at['errno']))
        os.kill(os.getpid(), signal.SIGKILL)


DiffusionBoxSampler.draw_training, builtins.open = recording_draw, opening


@HOOKS.register_module()
class RecordHook(Hook):
    priority = 'LOWEST'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        entry = dict(iteration=runner.iter, noise=noise.pop(),
                     samples=[(Path(sample.img_path).name, sample.flip) for sample in data_batch['data_samples']],
                     losses={name: value.item() for name, value in outputs.items()})
        with stock_open(f'{runner.work_dir}/record_{get_rank()}.jsonl', 'a') as file:
            file.write(json.dumps(entry) + chr(10))
        if runner.iter == end_at.get('iteration') and get_rank() == end_at.get('rank', 0):
            if 'replace' not in end_at:
                os.kill(os.getpid(), signal.SIGKILL)
            path, other = end_at['replace']
            os.rename(path, path + '.away')
            if other is not None:
                os.rename(other, path)


run_mmdet_tool('train.py')
"""


def shapes_options(shapes: Path, *, num_workers: int = 0) -> list[str]:
    """Options for a training of seconds on drawn shapes, a checkpoint every two iterations, the last one kept."""
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    return [
        *(f'{loader}.dataset.data_root={shapes}/' for loader in loaders),
        *(f'{loader}.num_workers={num_workers}' for loader in loaders),
        *(f'{loader}.persistent_workers={num_workers > 0}' for loader in loaders),
        'train_dataloader.batch_size=2', 'val_cfg=None', 'val_dataloader=None', 'val_evaluator=None',
        'train_cfg.val_interval=100', 'model.bbox_head.num_proposals=20', 'model.bbox_head.num_stages=2',
        'default_hooks.logger.interval=1', 'default_hooks.checkpoint.interval=2',
        'default_hooks.checkpoint.max_keep_ckpts=1', 'default_hooks.record.type=RecordHook', 'randomness.seed=7',
    ]


def draw_shapes(folder: Path) -> Path:
    """A data set of 12 pictures for training."""
    command = [sys.executable, REPOSITORY / 'tools' / 'dataset_converters' / 'make_shapes.py', folder, '--num-train',
               '12', '--num-val', '2', '--size', '64']
    subprocess.run(command, check=True, capture_output=True)
    return folder


def train_command(folder: Path, *args: str, launch: tuple[str, ...] = ()) -> list[str]:
    """The command line of a training into a folder; ``launch`` are torchrun's arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / 'train_recorded.py'
    program.write_text(PROGRAM)
    distributed = [*TORCHRUN, *launch] if launch else []
    return [sys.executable, *distributed, str(program), CONFIG, '--work-dir', str(folder), *args]


def distributed_options() -> list[str]:
    """Options for processes on a CPU."""
    return ['env_cfg.dist_cfg.backend=gloo', 'model_wrapper_cfg.type=MMDistributedDataParallel',
            'model_wrapper_cfg.device_ids=None']


def environment(**end_at: object) -> dict[str, str]:
    """Of a training that ends itself there, or not at all."""
    return dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', END_AT=json.dumps(end_at))


def run(command: list[str], code: int = 0, **end_at: object) -> str:
    """Run to its end; gives what it printed."""
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False,
                            env=environment(**end_at))
    assert result.returncode == code, f'{result.returncode}: {result.stdout[-2000:]}{result.stderr[-4000:]}'
    return result.stdout + result.stderr


def record(folder: Path, rank: int = 0) -> dict[int, dict]:
    """What a process noted of each iteration, the last time that it was trained on."""
    lines = (folder / f'record_{rank}.jsonl').read_text().splitlines()
    return {entry['iteration']: entry for entry in map(json.loads, lines)}


def differing_state(checkpoint: Path, other: Path) -> list[str]:
    """Names of weights and optimiser states that differ by a bit between two checkpoints."""
    one, two = torch.load(checkpoint), torch.load(other)
    assert one['state_dict'].keys() == two['state_dict'].keys()
    assert one['optimizer']['state'].keys() == two['optimizer']['state'].keys()
    different = [name for name, value in one['state_dict'].items() if not torch.equal(value, two['state_dict'][name])]
    return different + [f'optimizer.{number}.{name}' for number, states in one['optimizer']['state'].items()
                        for name, value in states.items()
                        if not torch.equal(value, two['optimizer']['state'][number][name])]


def command(shapes, folder, *extra, num_workers=0, launch=(), resume=False):
    options = [*shapes_options(shapes, num_workers=num_workers), f'train_cfg.max_iters={ITERATIONS}', *extra]
    if launch:
        options += distributed_options()
    return train_command(folder, *(['--resume'] if resume else []), '--cfg-options', *options, launch=launch)


def assert_equal_runs(folder, whole, ranks=(0, )):
    for rank in ranks:
        assert sorted(record(whole, rank)) == list(range(ITERATIONS))
        assert record(folder, rank) == record(whole, rank)
    last = f'iter_{ITERATIONS}.pth'
    assert not differing_state(folder / last, whole / last)
