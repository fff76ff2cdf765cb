"""How fast a config's model is: against the same model with mmdet's RoI extractor, and against its matrix products.

Example:
    python tools/analysis_tools/benchmark_head.py configs/diffusiondet/diffusiondet_r50_fpn_8xb2-450k_coco.py

Prints a Markdown table with medians, ranges and targets, and how many operators run; `--out` saves it all as JSON. The
two sides of a ratio are measured in turn; a ratio is the median over the turns. `--quick` takes small sizes, whose
ratios mean little.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from benchmark_comparison import Row
from benchmark_models import QUICK, Sizes
from benchmark_operators import operator_counts
from benchmark_rows import HALF, Bench, all_rows, row_name
from benchmark_timing import environment
from mmengine.config import Config, DictAction

from mmdet_diffusion.config_zoo import resolve_config
from mmdet_diffusion.half_precision import HALF_DTYPES, missing_support
from mmdet_diffusion.host_memory import keep_freed_memory

MIN_REPETITIONS = 5
NOTES = (
    'Untrained weights; those of the deltas are scaled down to 1 %, so that boxes stay realistic through the stages.',
    'Boxes of the RoI and head rows have sides from 16 pixels to those of the image, log-uniform, and so have those '
    'that renewal draws. Whole inference starts from noise.',
    'In half precision: model.test_dtype with channels_last against the float32 default, where the device has it.',
    'Post-processing starts from detections of all steps, boxes of the sizes of objects, every class as likely as any.',
    'A training step is forward, backward and optimiser. Matching + losses are forward and backward to the outputs of '
    'the head, held against a training step whose forward and backward are scaled up by the number of images, while '
    'clipping and optimiser are paid once.',
    'Peak memory: what building the model and two training steps add to the peak of a process (on a CPU the resident '
    'size, on a GPU that of tensors).',
    'Reads and uploads are waits between host and GPU. Sampling was counted on the meta device with '
    "implementation='gathered' of the RoI extractor, whatever the times above were measured with. On a CPU the reads "
    'of training include those of host tables, and its uploads are not seen.',
)


def table(rows: list[Row]) -> str:
    """Markdown table of the comparisons."""
    lines = ['| what | ours | reference | ratio | wanted | aim | met |',
             '| --- | --- | --- | ---: | ---: | ---: | --- |']
    for row in rows:
        target = row.target
        least, aim = ('<= ', '< ') if target.at_most else ('>= ', '>= ')
        lines.append(f'| {row.what} | {row.ours.text()} | {row.against}: {row.reference.text()} | '
                     f'{target.text(row.ratio)} | {least}{target.text(target.least)} | '
                     f'{aim}{target.text(target.aim)} | {target.met(row.ratio)} |')
    return '\n'.join(lines)


def operator_table(counts: list[dict]) -> str:
    """Markdown table of operators and waits."""
    lines = ['| what | operators | reads | uploads | where it waits |', '| --- | ---: | ---: | ---: | --- |']
    for count in counts:
        places = ', '.join(f'{times} x {place}' for place, times in count['places'].items()) or 'nowhere'
        lines.append(f'| {count["what"]} | {count["operators"]} | {count["reads"]} | {count["uploads"]} | {places} |')
    return '\n'.join(lines)


def measure_all(bench: Bench, names: list[str] | None = None) -> list[Row]:
    """All comparisons, or those of some names; says on stderr how far it is, since they take minutes."""
    lack = missing_support(bench.device, HALF_DTYPES[HALF])
    if lack is not None and names is None:
        print(f'not measured in {HALF}: {lack}', file=sys.stderr)
    rows, measures = [], all_rows(bench.sizes.steps, half=lack is None)
    measures = [measure for measure in measures if names is None or row_name(measure) in names]
    for number, measure in enumerate(measures, 1):
        rows.append(measure(bench))
        print(f'{number}/{len(measures)} {rows[-1].what}', file=sys.stderr, flush=True)
    return rows


def as_record(row: Row) -> dict:
    """A row for JSON."""
    target = row.target
    return dict(what=row.what, unit=row.ours.unit, ours=row.ours.values, ours_median=row.ours.median,
                against=row.against, reference=row.reference.values, reference_median=row.reference.median,
                ratio=row.ratio, at_most=target.at_most, least=target.least, aim=target.aim,
                met=target.met(row.ratio))


def parse_args(argv: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='path, or name of one of this package')
    parser.add_argument('--device', type=usable_device, default='cuda:0' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--quick', action='store_true', help='small sizes, to see that it works')
    parser.add_argument('--boxes', type=int, help=f'boxes per image, {Sizes().boxes} unless given')
    parser.add_argument('--steps', type=int, help=f'where there are several, {Sizes().steps} unless given')
    parser.add_argument('--repetitions', type=int, default=MIN_REPETITIONS,
                        help=f'of each time, at least {MIN_REPETITIONS}')
    names = list(dict.fromkeys(map(row_name, all_rows(2, half=True))))
    parser.add_argument('--rows', nargs='+', choices=names, metavar='NAME',
                        help='these alone, of %(choices)s; operators are not counted then')
    parser.add_argument('--memory-runs', type=int, help='processes per side, 2 unless given, 1 with --quick')
    parser.add_argument('--freed-memory', choices=('kept', 'returned'), default='kept',
                        help='on a CPU: kept for later tensors as tools/train.py does, or left to the C library')
    parser.add_argument('--out', type=Path, help='JSON file to write')
    parser.add_argument('--overwrite', action='store_true', help='of a file that is there')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args(argv)
    for name, least in dict(boxes=1, steps=2, repetitions=MIN_REPETITIONS, memory_runs=1).items():
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f'--{name.replace("_", "-")} must be at least {least}, got {value}')
    check_target(parser, args.out, args.overwrite)
    return parser, args


def check_target(parser: argparse.ArgumentParser, file: Path | None, overwrite: bool) -> None:
    """Stop before anything is measured where a result could not be written."""
    if file is None:
        return
    if file.is_dir() or not file.resolve().parent.is_dir():
        parser.error(f'{file} cannot be written: it is a folder, or its folder does not exist')
    if file.exists() and not overwrite:
        parser.error(f'{file} exists; give another name, or --overwrite')


def usable_device(text: str) -> torch.device:
    """Device of a command line, if it is there and the clock knows how to wait for it."""
    try:
        device = torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        raise argparse.ArgumentTypeError(f'{text!r} cannot be used: {str(error).splitlines()[0]}') from error
    if device.type not in ('cpu', 'cuda'):
        raise argparse.ArgumentTypeError(f'{text!r} cannot be timed; give cpu or cuda, such as cuda:0')
    return device


def read_config(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Config:
    """The config of a command line, by path or name, with its overrides."""
    try:
        config = Config.fromfile(resolve_config(args.config))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    config.merge_from_dict(args.cfg_options or {})
    return config


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser, args = parse_args(argv)
    sizes = QUICK if args.quick else Sizes()
    sizes = sizes._replace(boxes=args.boxes or sizes.boxes, steps=args.steps or sizes.steps)
    bench = Bench(config=read_config(parser, args), device=args.device, sizes=sizes, repetitions=args.repetitions,
                  memory_runs=args.memory_runs or (1 if args.quick else 2),
                  keep_memory=args.freed_memory == 'kept' and keep_freed_memory())
    surroundings = dict(environment(args.device, keeps_memory=bench.keep_memory), config=args.config,
                        quick=str(args.quick))
    print(', '.join(f'{name}: {value}' for name, value in surroundings.items()) + '\n')
    try:
        rows = measure_all(bench, args.rows)
    except ValueError as error:
        parser.error(str(error))
    counts = operator_counts(bench) if args.rows is None else []
    tables = [table(rows), *([operator_table(counts)] if counts else []), '\n'.join(f'- {note}' for note in NOTES)]
    print(*tables, sep='\n\n')
    if args.out:
        result = dict(environment=surroundings, sizes=sizes._asdict(), rows=[as_record(row) for row in rows],
                      operators=counts, notes=NOTES)
        args.out.write_text(json.dumps(result, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
