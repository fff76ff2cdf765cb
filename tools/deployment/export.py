"""Export a trained detector to ONNX, for onnxruntime and OpenVINO, and check that it computes what torch computes.

Example:
    python tools/deployment/export.py CONFIG CHECKPOINT --out exported

Writes features.onnx, refine.onnx and sampler.json, which diffusiondet_runtime runs without torch at any number of boxes
and steps (docs/deployment.md). When the check fails, the folder gets another name and the exit status is 1.
"""

import argparse
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

NEEDED = ('onnx', 'onnxruntime')


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line, checked as far as that goes without torch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='path, or name of one of this package')
    parser.add_argument('checkpoint', help='path of the weights')
    parser.add_argument('--out', type=Path, required=True, help='folder to make; one that is there must be empty')
    parser.add_argument('--unrolled', type=int, nargs=2, metavar=('STEPS', 'BOXES'),
                        help='also write unrolled.onnx: the whole process at fixed steps and boxes, noise as an input')
    parser.add_argument('--no-check', action='store_true', help='do not compare with torch')
    parser.add_argument('--check-picture', type=Path, help='picture to compare on; default: a made one')
    parser.add_argument('--check-boxes', type=int, help="boxes to compare with; default: the config's")
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    args = parser.parse_args(argv)
    for value in (*(args.unrolled or ()), *([] if args.check_boxes is None else [args.check_boxes])):
        if value < 1:
            parser.error(f'steps and boxes must be at least 1, got {value}')
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise SystemExit(f'{", ".join(missing)} not installed here. Cure: pip install "mmdet_diffusion[export]"')
    if not Path(args.checkpoint).is_file():
        raise SystemExit(f'there is no checkpoint {args.checkpoint}')
    if args.check_picture is not None and not args.check_picture.is_file():
        raise SystemExit(f'there is no picture {args.check_picture}')
    refuse_taken_folder(args.out)
    return args


def refuse_taken_folder(out: Path) -> None:
    """Stop where the folder is a file or holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SystemExit(f'--out {out} is there and not an empty folder; name another one')


def build(args: argparse.Namespace):
    """Config, detector with its weights on the CPU, and class names."""
    from mmengine.registry import init_default_scope

    from mmdet_diffusion import input_checks, launch
    from mmdet_diffusion.deployment.onnx_export import refuse_unexportable
    from mmdet_diffusion.detectors import DiffusionDet
    from mmdet_diffusion.prediction import MODELS, class_names, load_weights

    path, = launch.with_config_path([args.config])
    launch.refuse_missing_config(path)
    config = launch.read_config(path, launch.parse_cfg_options(args.cfg_options))
    input_checks.refuse_missing_model(config)
    init_default_scope(config.get('default_scope', 'mmdet'))
    try:
        detector = MODELS.build({key: value for key, value in config.model.items() if key != 'test_dtype'})  # float32
        if not isinstance(detector, DiffusionDet):
            raise SystemExit(f'{args.config} is a {type(detector).__name__}, not a DiffusionDet')
        content = load_weights(detector, args.checkpoint)
        refuse_unexportable(detector, args.unrolled)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    return config, detector.eval(), class_names(content.get('meta') or {}, config)


def write(args: argparse.Namespace, folder: Path) -> list:
    """Fill a folder and check it; gives the figures of the check."""
    from diffusiondet_runtime.folder import read_folder, sha256
    from diffusiondet_runtime.pictures import read_picture
    from mmdet_diffusion.deployment.onnx_export import write_export, write_sampler
    from mmdet_diffusion.deployment.parity_check import check_export, check_picture
    from mmdet_diffusion.deployment.sampler_file import sampler_content

    config, detector, classes = build(args)
    checkpoint = dict(name=Path(args.checkpoint).name, sha256=sha256(args.checkpoint))
    try:
        sampler = sampler_content(config, detector, classes, checkpoint)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    write_export(detector, folder, sampler, None if args.unrolled is None else tuple(args.unrolled))
    read_folder(folder)
    if args.no_check:
        return []
    size = (sampler['input']['resize'] or {}).get('scale') or (640, 480)
    picture = check_picture(tuple(size)) if args.check_picture is None else read_picture(
        args.check_picture, sampler['input']['decoder'])
    figures = check_export(detector, folder, picture, boxes=args.check_boxes or sampler['sampling']['boxes'])
    write_sampler(folder, dict(sampler, check=[figure._asdict() for figure in figures]))
    return figures


def name_for_failed(out: Path) -> Path:
    """A name beside the wanted one that is not taken."""
    number, failed = 2, out.with_name(f'{out.name}.failed')
    while failed.exists():
        number, failed = number + 1, out.with_name(f'{out.name}.failed-{number}')
    return failed


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    args = parse_args(argv)
    if not args.out.name or args.out.is_symlink():  # the present folder, or one under another name
        args.out = args.out.resolve()
    os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')  # the tracer warns of each operator that it does not know
    from diffusiondet_runtime import ExportError

    unfinished = args.out.with_name(f'.{args.out.name}-{os.getpid()}')
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise SystemExit(f'--out {args.out} cannot be made: {error.strerror}') from error
    try:
        figures = write(args, unfinished)
        failed = [figure for figure in figures if not figure.holds]
        target = name_for_failed(args.out) if failed else args.out
        if target.is_dir():
            target.rmdir()  # empty, or it would have been refused
        unfinished.rename(target)
    except ExportError as error:
        raise SystemExit(str(error)) from error
    except OSError as error:
        raise SystemExit(f'cannot write to {args.out}: {error.strerror or error}') from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    for figure in figures:
        print(figure)
    if failed:
        print(f'the check failed ({"; ".join(map(str, failed))}): the files are in {target}', file=sys.stderr)
        return 1
    print(target)
    return 0


if __name__ == '__main__':
    sys.exit(main())
