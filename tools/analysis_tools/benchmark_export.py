"""Time and memory of a detector in torch, onnxruntime and OpenVINO, side by side, as a Markdown table.

Example:
    python tools/analysis_tools/benchmark_export.py CONFIG CHECKPOINT EXPORTED

Each row is measured in processes of their own, the engines in turn; memory is the most that such a process held (on
Linux). The picture is a made one of the size that the export resizes to.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

ENGINES = ('torch', 'onnxruntime', 'openvino')


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='path, or name of one of this package')
    parser.add_argument('checkpoint')
    parser.add_argument('exported', help='folder of mmdet-diffusion export, of this config and checkpoint')
    parser.add_argument('--boxes', type=int, nargs='+', default=[100, 300, 500])
    parser.add_argument('--steps', type=int, nargs='+', default=[1, 4])
    parser.add_argument('--repetitions', type=int, default=5, help='timed calls in a process, after one that is not')
    parser.add_argument('--rounds', type=int, default=2, help='processes an engine and row, the engines in turn')
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--cell', nargs=3, metavar=('ENGINE', 'BOXES', 'STEPS'), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def in_torch(args: argparse.Namespace, boxes: int, steps: int) -> Callable[[], object]:
    """A call that finds the objects of the picture, from its pixels on, in eager torch."""
    import numpy as np
    import torch
    from mmengine.config import Config
    from mmengine.dataset import pseudo_collate

    from diffusiondet_runtime.folder import read_folder
    from mmdet_diffusion import config_path
    from mmdet_diffusion.prediction import Predictor

    torch.set_num_threads(args.threads)
    config = Config.fromfile(args.config if os.path.isfile(args.config) else config_path(args.config))
    dial = dict(sampling_timesteps=steps, num_proposals=boxes)
    predictor = Predictor(config, args.checkpoint, device='cpu', score_thr=0.0, dial=dial)
    picture = np.ascontiguousarray(made_picture(read_folder(args.exported).sampler)[..., ::-1])
    shape = picture.shape[:2]

    @torch.no_grad()
    def call():
        return predictor.model.test_step(pseudo_collate([predictor.rest(dict(
            img=picture, img_id='a', img_path='a', img_shape=shape, ori_shape=shape))]))

    return call


def exported_in(engine: str, args: argparse.Namespace, boxes: int, steps: int) -> Callable[[], object]:
    """The same by an engine."""
    from diffusiondet_runtime import OnnxDetector

    detector = OnnxDetector(args.exported, engine=engine, num_threads=args.threads)
    picture = made_picture(detector.sampler)
    return lambda: detector.detect(picture, steps=steps, boxes=boxes, name='a')


def made_picture(sampler: dict):
    """Noise, uint8 RGB, of the size that pictures are resized to."""
    import numpy as np

    width, height = (sampler['input']['resize'] or {}).get('scale') or (640, 480)
    return np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8)


def measure_cell(args: argparse.Namespace) -> dict:
    """Seconds of each timed call, and the most memory of this process in MiB."""
    engine, boxes, steps = args.cell[0], int(args.cell[1]), int(args.cell[2])
    from diffusiondet_runtime.memory import peak_bytes

    call = in_torch(args, boxes, steps) if engine == 'torch' else exported_in(engine, args, boxes, steps)
    call()
    seconds = []
    for _ in range(args.repetitions):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return dict(seconds=seconds, mib=peak_bytes() / 2**20)


def measure_in_processes(args: argparse.Namespace, argv: list[str], engine: str, boxes: int, steps: int) -> dict:
    """A cell in a process of its own."""
    command = [sys.executable, __file__, *argv, '--cell', engine, str(boxes), str(steps)]
    environment = dict(os.environ, OMP_NUM_THREADS=str(args.threads))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f'{engine} at {boxes} boxes and {steps} steps failed: '
                         f'{(done.stderr.strip().splitlines() or ["no message"])[-1]}')
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    if args.cell:
        print(json.dumps(measure_cell(args)))
        return 0
    engines = [engine for engine in ENGINES if find_spec(engine)]
    print('| boxes | steps | ' + ' | '.join(f'{engine}, s | MiB | x torch' for engine in engines) + ' |')
    print('| ---: ' * (2 + 3 * len(engines)) + '|')
    for boxes in args.boxes:
        for steps in args.steps:
            cells = {engine: dict(seconds=[], mib=[]) for engine in engines}
            for _ in range(args.rounds):
                for engine in engines:
                    measured = measure_in_processes(args, argv, engine, boxes, steps)
                    cells[engine]['seconds'] += measured['seconds']
                    cells[engine]['mib'].append(measured['mib'])
            medians = {engine: statistics.median(cell['seconds']) for engine, cell in cells.items()}
            print(f'| {boxes} | {steps} | ' + ' | '.join(
                f'{medians[engine]:.3g} | {max(cells[engine]["mib"]):.0f} | {medians[engine] / medians["torch"]:.2f}'
                for engine in engines) + ' |', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
