"""Find objects in pictures: draws them into OUT_DIR/vis and writes OUT_DIR/predictions.json.

Example:
    python tools/predict.py CONFIG CHECKPOINT holiday.jpg folder/ 'more/**/*.png' --steps 4 --boxes 300
    python tools/predict.py EXPORTED holiday.jpg    # a folder of mmdet-diffusion export, without torch

A picture that cannot be read is named and the others go on; the exit status is 1 then.
"""

import argparse
import glob
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

SUFFIXES = {'.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'}
DRAWN = {'.jpg', '.jpeg', '.png'}  # formats that drawn pictures keep; others become PNG


class Sources(NamedTuple):
    """What the command line names.

    Attributes:
        pictures (list[Path]): files, each once, in the order given; those of a folder or glob sorted.
        failed (dict[str, str]): reason by source that leads to no picture.
    """

    pictures: list[Path]
    failed: dict[str, str]


def find_pictures(sources: list[str]) -> Sources:
    """Pictures by name, in folders (not in folders inside) and by globs (``**`` goes into folders)."""
    pictures, failed = [], {}
    for source in sources:
        path = Path(source)
        if path.is_file():
            found = [path]
        elif path.is_dir():
            found = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in SUFFIXES)
        else:
            found = sorted(file for file in map(Path, glob.glob(source, recursive=True)) if file.is_file())
        if not found:
            failed[source] = 'a folder without pictures' if path.is_dir() else 'not there'
        pictures += found
    return Sources(list(dict.fromkeys(pictures)), failed)


def drawn_names(pictures: list[Path]) -> dict[Path, str]:
    """A name for each drawn picture; equal ones, of several folders, get a number."""
    names, taken = {}, set()
    for picture in pictures:
        suffix = picture.suffix if picture.suffix.lower() in DRAWN else '.png'
        name, number = picture.stem + suffix, 2
        while name.lower() in taken:
            name, number = f'{picture.stem}_{number}{suffix}', number + 1
        taken.add(name.lower())
        names[picture] = name
    return names


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes ``path`` at the end, all of it or nothing."""
    unfinished = path.with_name(f'.{path.stem}-{os.getpid()}{path.suffix}')
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


class Run:
    """Goes through the pictures in batches.

    Args:
        predictor (Predictor): with the weights.
        sources (Sources): what to look at; what fails is added to it.
        out_dir (Path): there already.
        batch_size (int): pictures at once.
    """

    def __init__(self, predictor, sources: Sources, out_dir: Path, batch_size: int) -> None:
        self.predictor, self.sources, self.out_dir, self.batch_size = predictor, sources, out_dir, batch_size
        self.names = drawn_names(sources.pictures)

    def batches(self) -> Iterator[list[tuple]]:
        """Readable pictures: path, pixels and network input of each."""
        batch = []
        for path in self.sources.pictures:
            try:
                batch.append((path, *self.predictor.read(path)))
            except Exception as error:  # whatever decoders raise at what is no picture
                reason = (str(error).strip().splitlines() or [''])[0]
                self.sources.failed[str(path)] = f'cannot be used ({type(error).__name__}: {reason})'
                report(str(path), self.sources.failed[str(path)])
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def records(self) -> Iterator[dict]:
        """Detections of each picture, which is drawn on the way."""
        for batch in self.batches():
            found = self.predictor.detect([sample for _, _, sample in batch])
            for (path, picture, _), detections in zip(batch, found, strict=True):
                drawn = self.out_dir / 'vis' / self.names[path]
                with whole_file(drawn) as unfinished:
                    self.predictor.draw(picture, detections, unfinished)
                record = dict(image=str(path), drawn=f'vis/{drawn.name}', **self.predictor.record(detections))
                print(f'{path}: {len(record["labels"])} objects')
                yield record


def report(source: str, reason: str) -> None:
    """Name what fails, as it fails."""
    print(f'{source}: {reason}', file=sys.stderr)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line, checked as far as that goes without torch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='path, or name of one of this package; or an exported folder')
    parser.add_argument('checkpoint', help='path or address; none after an exported folder')
    parser.add_argument('sources', nargs='*', metavar='SOURCE', help='picture, folder of pictures, or quoted glob')
    parser.add_argument('--out-dir', type=Path, default=Path('predictions'), help='default: predictions')
    parser.add_argument('--score-thr', type=float, default=0.3, help='leave out what scores no more (default 0.3)')
    parser.add_argument('--boxes', type=int, help="number of boxes to start from; default: the config's")
    parser.add_argument('--steps', type=int, help="sampling steps; default: the config's")
    parser.add_argument('--seed', type=int, help="of the boxes to start from; default: the config's, else 0")
    parser.add_argument('--device', help='default: cuda:0 where there is one, else cpu')
    parser.add_argument('--batch-size', type=int, default=1, help='pictures at once (default 1)')
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


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    args = parse_args(argv)
    sources = find_pictures(args.sources)
    for source, reason in sources.failed.items():
        report(source, reason)
    if not sources.pictures:
        raise SystemExit('there is no picture to look at')
    predictor = build_predictor(args)  # imports torch and mmdet, which takes seconds
    make_folder(args.out_dir)
    records = []
    content = dict(config=args.config, checkpoint=args.checkpoint, score_thr=args.score_thr,
                   classes=predictor.classes, images=records, failed=sources.failed)
    try:
        try:
            for record in Run(predictor, sources, args.out_dir, args.batch_size).records():
                records.append(record)
        finally:  # what is drawn is in the file, too, whatever ends the run
            with whole_file(args.out_dir / 'predictions.json') as unfinished:
                unfinished.write_text(json.dumps(content) + '\n')
    except OSError as error:
        raise SystemExit(f'cannot write to {args.out_dir}: {error.strerror or error}') from error
    print(f'{args.out_dir / "predictions.json"}')
    if sources.failed:
        print(f'{len(sources.failed)} could not be used: {", ".join(sources.failed)}', file=sys.stderr)
    return int(bool(sources.failed))


if __name__ == '__main__':
    sys.exit(main())
