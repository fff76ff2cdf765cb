"""Find objects in pictures and videos: draws them into OUT_DIR/vis and writes OUT_DIR/predictions.json.

Example:
    python tools/predict.py CONFIG CHECKPOINT holiday.jpg folder/ 'more/**/*.png' --steps 4 --boxes 300
    python tools/predict.py CONFIG CHECKPOINT clip.mp4 0 rtsp://camera.local/stream --format jsonl coco
    python tools/predict.py EXPORTED holiday.jpg    # a folder of mmdet-diffusion export, without torch

A number is a camera. What cannot be read is named and the others go on; the exit status is 1 then. Ctrl-C or SIGTERM
ends the run, and what was found until then is in the files.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from diffusiondet_runtime.prediction_files import FORMATS, DrawnFiles
from diffusiondet_runtime.prediction_stream import Prediction, predict_stream
from diffusiondet_runtime.sources import Sources, find_sources

SHOWN_EVERY = 0.5  # seconds


class Progress:
    """Says what was found: a line a picture, and one a video. A terminal counts besides, with the rate.

    Args:
        pictures (int): that are asked for.
        stream: where counts go; not written to unless it is a terminal.
    """

    def __init__(self, pictures: int, stream=sys.stderr) -> None:
        self.pictures, self.stream = pictures, stream
        self.video, self.done = None, 0

    def add(self, one: Prediction, objects: int) -> None:
        """A picture or frame more."""
        video = None if one.frame is None else one.source
        if video != self.video or not self.done:
            self.end()
            self.video, self.done, self.objects = video, 0, 0
            self.start = self.shown = time.perf_counter()
        self.done, self.objects = self.done + 1, self.objects + objects
        if video is None:
            self._show('')
            print(f'{one.source}: {objects} objects')
        now = time.perf_counter()
        if now - self.shown > SHOWN_EVERY or (video is None and self.done > 1):
            whole = self.pictures if video is None else one.video.number
            self._show(f'{video or "pictures"}: {self.done}{f" of {whole}" if whole else ""}, '
                       f'{self.rate(now):.1f} a second')
            self.shown = now

    def _show(self, text: str) -> None:
        if self.stream.isatty():
            print(f'\r\033[K{text}', end='', file=self.stream, flush=True)

    def rate(self, now: float) -> float:
        """Pictures or frames a second, without the first, which takes longer; of one 0."""
        return (self.done - 1) / max(now - self.start, 1e-9)

    def end(self) -> None:
        """Of the pictures or of a video."""
        self._show('')
        if self.done and self.video is not None:
            print(f'{self.video}: {self.done} frames, {self.objects} objects, '
                  f'{self.rate(time.perf_counter()):.1f} frames a second')
        self.done = 0


def report(source: str, reason: str) -> None:
    """Name what fails, as it fails."""
    print(f'{source}: {reason}', file=sys.stderr)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line, checked as far as that goes without torch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='path, or name of one of this package; or an exported folder')
    parser.add_argument('checkpoint', help='path or address; none after an exported folder')
    parser.add_argument('sources', nargs='*', metavar='SOURCE',
                        help='picture, video, folder, quoted glob, number of a camera, or address of a stream')
    parser.add_argument('--out-dir', type=Path, default=Path('predictions'), help='default: predictions')
    parser.add_argument('--score-thr', type=float, default=0.3, help='leave out what scores no more (default 0.3)')
    parser.add_argument('--boxes', type=int, help="number of boxes to start from; default: the config's")
    parser.add_argument('--steps', type=int, help="sampling steps; default: the config's")
    parser.add_argument('--seed', type=int, help="of the boxes to start from; default: the config's, else 0")
    parser.add_argument('--device', help='default: cuda:0 where there is one, else cpu')
    parser.add_argument('--batch-size', type=int, default=1, help='pictures or frames at once (default 1)')
    parser.add_argument('--format', nargs='+', choices=FORMATS, default=['json'], dest='formats',
                        help='predictions.json (default), .jsonl (a line a picture, as it comes), .coco.json')
    parser.add_argument('--carry-boxes', action='store_true',
                        help='of a video: start from the detections of the frame before, besides noise')
    parser.add_argument('--no-draw', action='store_true', help='write no drawn pictures and videos')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    parser.add_argument('--engine', choices=('onnxruntime', 'openvino'),
                        help='that runs an exported folder (default: onnxruntime)')
    args = parser.parse_args(argv)
    args.is_export = Path(args.config).is_dir()
    if args.is_export:
        args.sources, args.checkpoint = [args.checkpoint, *args.sources], None
        for name in ('device', 'cfg_options'):
            if getattr(args, name):
                parser.error(f'--{name.replace("_", "-")} goes with a config, not with an exported folder')
    elif args.engine:
        parser.error('--engine goes with an exported folder, not with a config')
    if not args.sources:
        parser.error(f'the following arguments are required: SOURCE (there is no exported folder {args.config})')
    for name in ('boxes', 'steps', 'batch_size'):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f'--{name.replace("_", "-")} must be at least 1, got {value}')
    if args.checkpoint is not None and '://' not in args.checkpoint and not Path(args.checkpoint).is_file():
        raise SystemExit(f'there is no checkpoint {args.checkpoint}')
    return args


def make_folder(out_dir: Path) -> None:
    """Make where results go, before anything is computed that could not be kept."""
    try:
        (out_dir / 'vis').mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f'--out-dir {out_dir} cannot be made: {error.strerror}') from error
    for folder in (out_dir, out_dir / 'vis'):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise SystemExit(f'--out-dir {out_dir} cannot be used: {folder} may not be written')


def build_predictor(args: argparse.Namespace):
    """The model of the command line, after what can be refused before it is built."""
    if args.is_export:
        from diffusiondet_runtime.prediction import ExportPredictor

        return ExportPredictor(args.config, engine=args.engine or 'onnxruntime', score_thr=args.score_thr,
                               steps=args.steps, boxes=args.boxes, seed=args.seed)
    from mmdet_diffusion.command_line import predictor_of

    dial = dict(sampling_timesteps=args.steps, num_proposals=args.boxes, seed=args.seed)
    return predictor_of(args, {name: value for name, value in dial.items() if value is not None})


def run(args: argparse.Namespace, predictor, sources: Sources) -> None:
    """Detect in all sources and write; what fails is added to them. All files are whole, whatever ends the run."""
    def failed(source: str, reason: str) -> None:
        sources.failed[source] = reason
        report(source, reason)

    content = dict(config=args.config, checkpoint=args.checkpoint, score_thr=args.score_thr,
                   classes=list(predictor.classes), failed=sources.failed)
    drawn = DrawnFiles(args.out_dir / 'vis')
    progress = Progress(sum(isinstance(item, Path) for item in sources.items))
    files = [FORMATS[name](args.out_dir, content) for name in dict.fromkeys(args.formats)]
    try:
        for one in predict_stream(predictor, sources.items, batch_size=args.batch_size,
                                  carry_boxes=args.carry_boxes, failed=failed):
            record = dict(image=one.source) if one.frame is None else dict(video=one.source, frame=one.frame)
            if not args.no_draw:
                pixels = predictor.drawn(one.pixels, one.found)
                path = drawn.add_picture(one.source, pixels) if one.frame is None else drawn.add_frame(
                    one.source, one.video.video.name, one.video.rate, pixels)
                record['drawn'] = f'vis/{path.name}'
            record |= predictor.record(one.found)
            for file in files:
                file.add(record)
            progress.add(one, len(record['labels']))
    finally:
        progress.end()
        drawn.close()
        for file in files:
            file.close()
    for file in files:
        print(file.path)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    args = parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # names of files may be no text
        stream.reconfigure(errors='backslashreplace')
    sources = find_sources(args.sources)
    for source, reason in sources.failed.items():
        report(source, reason)
    if not sources.items:
        raise SystemExit('there is no picture to look at')
    predictor = build_predictor(args)  # imports torch and mmdet, which takes seconds
    make_folder(args.out_dir)
    try:
        run(args, predictor, sources)
    except OSError as error:
        raise SystemExit(f'cannot write to {args.out_dir}: {error.strerror or error}') from error
    if sources.failed:
        print(f'{len(sources.failed)} could not be used: {", ".join(sources.failed)}', file=sys.stderr)
    return int(bool(sources.failed))


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: services and containers stop programs so
    sys.exit(main())
