"""From nothing to a trained, tested and pictured DiffusionDet on shapes that it draws itself.

Makes the data, trains with tools/train.py, tests the same weights at several settings of the dial, and draws two
pictures; all in the current folder, under data/ and work_dirs/. On a GPU it uses that. A few iterations first tell how
long it will take. A training that has finished is not repeated: delete the work folder to train again.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

TOOLS = Path(__file__).resolve().parent
CONFIG = 'diffusiondet_r18_fpn_1xb4-4k_shapes'
SETTINGS = ('1x64', '4x64', '1x500', '4x500')  # steps x boxes; 64 boxes as in training
TRIAL, SETTLING = 40, 10  # iterations that are timed, and how many of them do not count: caches fill
QUICK = 6  # iterations of the short form


class Speed(NamedTuple):
    """How fast this machine trains.

    Attributes:
        start (float): seconds until the first iteration.
        iteration (float): seconds of each.
    """

    start: float
    iteration: float

    def minutes(self, iterations: int) -> float:
        """Time of a training."""
        return (self.start + self.iteration * iterations) / 60

    def iterations(self, minutes: float) -> int:
        """Length of a training that ends in this time, at least as many as are timed."""
        return max(TRIAL, round((60 * minutes - self.start) / self.iteration))


class Demo:
    """The steps of the demo.

    Args:
        work_dir (Path): where everything but the data goes.
        data (Path): folder of the shapes set.
        quick (bool): a few images and iterations, to see that every step runs; the figures mean nothing then.
        minutes (float | None): time for the training; None for that of the config, whatever it takes.
    """

    def __init__(self, work_dir: Path, data: Path, quick: bool, minutes: float | None) -> None:
        self.work_dir, self.data, self.quick, self.minutes = work_dir, data, quick, minutes
        # mmengine drops spaces from the values of --cfg-options and splits them at commas.
        place = os.path.relpath(data) if data.is_relative_to(Path.cwd()) else str(data)
        if set(place) & set(' ,'):
            sys.exit(f'the demo cannot keep its data in {place}: choose a --data without space and comma')
        self.options = [f'{part}.dataset.data_root={place}/' for part in
                        ('train_dataloader', 'val_dataloader', 'test_dataloader')]
        self.options += [f'{part}.ann_file={place}/annotations/val.json'
                         for part in ('val_evaluator', 'test_evaluator')]

    def make_data(self) -> None:
        """Draw the data set, unless it is there."""
        sizes = ['--num-train', '16', '--num-val', '6'] if self.quick else []
        try:
            run('dataset_converters/make_shapes.py', self.data, *sizes)
        except SystemExit as error:
            sys.exit(f'{error}\nthe demo takes another folder for its data by --data')

    def measure(self) -> Speed:
        """Train a little, to be thrown away, and see how long that takes."""
        print(f'\nhow fast is this machine? {TRIAL} iterations of training tell', flush=True)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            run('train.py', CONFIG, '--work-dir', folder, '--cfg-options', *self.options,
                f'train_cfg.val_begin={TRIAL + 1}', 'log_processor.window_size=1', 'default_hooks.logger.interval=1',
                'default_hooks.checkpoint.save_last=False', max_iters=TRIAL, quiet=True)
            whole = time.perf_counter() - start
            log, = Path(folder).glob('*/vis_data/scalars.json')
            seconds = [json.loads(line)['time'] for line in log.read_text().splitlines()]
        return Speed(whole - sum(seconds), sum(seconds[SETTLING:]) / (len(seconds) - SETTLING))

    def length(self) -> int:
        """Iterations of the training, said to the user with the time that they take."""
        if self.quick:
            return QUICK
        speed = self.measure()
        iterations = speed.iterations(self.minutes) if self.minutes else configured_length()
        print(f'{speed.iteration:.3f} s an iteration: {iterations} iterations of training take about '
              f'{speed.minutes(iterations):.1f} minutes', flush=True)
        return iterations

    def train(self) -> float | None:
        """Train; gives the minutes that it took, or None where that was done before."""
        if self.checkpoint() is not None:
            print(f'{self.work_dir} holds a trained model, which is used; delete the folder to train again')
            return None
        iterations = self.length()
        # No validation at the end: the tests that follow score these weights.
        options = ['default_hooks.logger.interval=2'] if self.quick else [f'train_cfg.val_begin={iterations + 1}']
        start = time.perf_counter()
        run('train.py', CONFIG, '--work-dir', self.work_dir, '--cfg-options', *self.options, *options,
            max_iters=iterations)
        return (time.perf_counter() - start) / 60

    def checkpoint(self) -> Path | None:
        """The last checkpoint, once training has finished."""
        last = self.work_dir / 'last_checkpoint'
        finished = self.work_dir / 'finished'
        return Path(last.read_text().strip()) if finished.exists() and last.exists() else None

    def test(self) -> None:
        """Test the same weights with more steps and more boxes."""
        run('analysis_tools/dial.py', CONFIG, self.checkpoint(), '--settings', *SETTINGS, '--out-dir',
            self.work_dir / 'dial', '--cfg-options', *self.options)

    def draw(self) -> None:
        """Draw the two pictures, with few enough boxes to see each."""
        run('visualizations/draw_denoising.py', CONFIG, self.checkpoint(), '--out-dir', self.work_dir,
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


def configured_length() -> int:
    """Iterations of the config, or of the environment variable that it reads."""
    from mmengine.config import Config
    file = TOOLS.parent / 'configs' / 'diffusiondet' / f'{CONFIG}.py'
    return Config.fromfile(file, import_custom_modules=False).max_iters


def run(script: str, *args: object, max_iters: int | None = None, quiet: bool = False) -> None:
    """Run one of the tools as a user would; stop the demo where it fails. A quiet one is heard only then.

    Args:
        script (str): path of the tool in tools/.
        args (object): of its command line.
        max_iters (int | None): length of a training, which the config takes from the environment.
        quiet (bool): print neither the command nor its output.
    """
    command = [sys.executable, str(TOOLS / script), *map(str, args)]
    length = {} if max_iters is None else dict(MAX_ITERS=str(max_iters))
    if not quiet:
        shown = os.path.relpath(command[1]) if Path(command[1]).is_relative_to(Path.cwd()) else command[1]
        before = ''.join(f'{name}={value} ' for name, value in length.items())
        print(f'\n$ {before}{shlex.join(["python", shown, *command[2:]])}', flush=True)
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) if quiet else {}
    done = subprocess.run(command, check=False, env=os.environ | length, **output)
    if done.returncode:
        print(done.stdout or '', end='')
        sys.exit(f'the demo stopped: {script} failed with code {done.returncode}; its message stands above')


def positive(text: str) -> float:
    """A number of minutes."""
    if not 0 < float(text) < float('inf'):
        raise argparse.ArgumentTypeError(f'must be a number above 0, got {text}')
    return float(text)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    length = parser.add_mutually_exclusive_group()
    length.add_argument('--quick', action='store_true', help='a few iterations, to see that everything runs')
    length.add_argument('--minutes', type=positive, help='train for about so long; the tests after it take some more')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo')
    parser.add_argument('--data', type=Path, help='folder of the shapes set; default: data/shapes')
    args = parser.parse_args()
    suffix = '_quick' if args.quick else ''
    length_suffix = f'_{args.minutes:g}-minutes' if args.minutes else suffix  # another length is another training
    work_dir = (args.work_dir or Path('work_dirs', f'demo{length_suffix}')).absolute()
    data = (args.data or Path('data', f'shapes{suffix}')).absolute()
    Demo(work_dir, data, args.quick, args.minutes).run()


if __name__ == '__main__':
    main()
