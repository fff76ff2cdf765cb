"""From nothing to a trained, tested and pictured DiffusionDet on shapes that it draws itself.

Makes the data, trains with tools/train.py, tests the same weights at several settings of the dial, and draws two
pictures. On a GPU it uses that. A training that has finished is not repeated: delete the work folder to train again.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = 'configs/diffusiondet/diffusiondet_r18_fpn_1xb4-4k_shapes.py'
SETTINGS = ('1x64', '4x64', '1x500', '4x500')  # steps x boxes; 64 boxes as in training


class Demo:
    """The steps of the demo.

    Args:
        work_dir (Path): where everything but the data goes.
        data (Path): folder of the shapes set.
        quick (bool): a few images and iterations, to see that every step runs; the figures mean nothing then.
    """

    def __init__(self, work_dir: Path, data: Path, quick: bool) -> None:
        self.work_dir, self.data, self.quick = work_dir, data, quick
        # mmengine drops spaces from the values of --cfg-options and splits them at commas.
        place = os.path.relpath(data, REPOSITORY) if data.is_relative_to(REPOSITORY) else str(data)
        if set(place) & set(' ,'):
            sys.exit(f'the demo cannot keep its data in {place}: choose a --data without space and comma')
        self.options = [f'{part}.dataset.data_root={place}/' for part in
                        ('train_dataloader', 'val_dataloader', 'test_dataloader')]
        self.options += [f'{part}.ann_file={place}/annotations/val.json'
                         for part in ('val_evaluator', 'test_evaluator')]
        if quick:
            self.options += ['train_cfg.max_iters=6', 'train_cfg.val_interval=6', 'default_hooks.logger.interval=2',
                             'default_hooks.checkpoint.interval=6']

    def make_data(self) -> None:
        """Draw the data set, unless it is there."""
        sizes = ['--num-train', '16', '--num-val', '6'] if self.quick else ['--num-train', '3000', '--num-val', '200']
        run('tools/dataset_converters/make_shapes.py', self.data, *sizes)

    def train(self) -> float | None:
        """Train; gives the minutes that it took, or None where that was done before."""
        if self.checkpoint() is not None:
            print(f'{self.work_dir} holds a trained model, which is used; delete the folder to train again')
            return None
        start = time.perf_counter()
        run('tools/train.py', CONFIG, '--work-dir', self.work_dir, '--cfg-options', *self.options)
        return (time.perf_counter() - start) / 60

    def checkpoint(self) -> Path | None:
        """The last checkpoint, once training has finished."""
        last = self.work_dir / 'last_checkpoint'
        finished = self.work_dir / 'finished'
        return Path(last.read_text().strip()) if finished.exists() and last.exists() else None

    def test(self) -> None:
        """Test the same weights with more steps and more boxes."""
        run('tools/analysis_tools/test_settings.py', CONFIG, self.checkpoint(), '--settings', *SETTINGS, '--work-dir',
            self.work_dir / 'test', '--out', self.work_dir / 'settings.json', '--cfg-options', *self.options)

    def draw(self) -> None:
        """Draw the two pictures, with few enough boxes to see each."""
        run('tools/visualizations/draw_denoising.py', CONFIG, self.checkpoint(), '--out-dir', self.work_dir,
            '--cfg-options', *self.options, 'model.test_cfg.num_proposals=64')

    def run(self) -> None:
        """All of it."""
        self.make_data()
        minutes = self.train()
        if minutes is not None:
            (self.work_dir / 'finished').write_text(f'{minutes:.1f} minutes\n')
            print(f'trained in {minutes:.1f} minutes')
        self.test()
        self.draw()


def run(script: str, *args: object) -> None:
    """Run one of the tools as a user would; stop the demo where it fails."""
    command = [sys.executable, script, *map(str, args)]
    print(f'\n$ {shlex.join(["python", *command[1:]])}', flush=True)
    code = subprocess.run(command, cwd=REPOSITORY, check=False).returncode
    if code:
        sys.exit(f'the demo stopped: {script} failed with code {code}; its message stands above')


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='a few iterations, to see that everything runs')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo')
    parser.add_argument('--data', type=Path, help='folder of the shapes set; default: data/shapes')
    args = parser.parse_args()
    suffix = '_quick' if args.quick else ''
    work_dir = (args.work_dir or REPOSITORY / 'work_dirs' / f'demo{suffix}').absolute()
    data = (args.data or REPOSITORY / 'data' / f'shapes{suffix}').absolute()
    Demo(work_dir, data, args.quick).run()


if __name__ == '__main__':
    main()
