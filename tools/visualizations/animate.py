"""Animate the way from noise to objects on a picture, as .webp or .gif, or draw it as the panels of a .png.

Example:
    python tools/visualizations/animate.py CONFIG CHECKPOINT holiday.jpg --out way.webp --steps 4 --boxes 100

Each box has the colour of what it becomes, stronger as it gets surer; what becomes nothing is grey, dashed where it was
renewed. The same picture, weights and seed give the same file.
"""

import argparse
import io
import os
import sys
from pathlib import Path

ENDINGS = ('.webp', '.gif', '.png')
# Argument: its key in model.test_cfg, what it is without either, and help.
DIAL = dict(
    boxes=('num_proposals', 100, 'number of boxes to start from'),
    steps=('sampling_timesteps', 4, 'sampling steps'),
    seed=('seed', 0, 'of the boxes to start from'))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line, checked as far as that goes without torch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='path, or name of one of this package')
    parser.add_argument('checkpoint', help='path or address')
    parser.add_argument('picture', type=Path)
    parser.add_argument('--out', type=Path, default=Path('denoising.webp'), help='default: denoising.webp')
    for name, (key, value, words) in DIAL.items():
        parser.add_argument(f'--{name}', type=int, help=f'{words} (default: model.test_cfg.{key} of --cfg-options, '
                            f'else {value})')
    parser.add_argument('--score-thr', type=float, default=0.4, help='of what counts as an object (default 0.4)')
    parser.add_argument('--size', type=int, help='pixels of the longer side (default: 480, of a panel 240)')
    parser.add_argument('--max-mib', type=float, default=2.0, help='most MiB of an animation (default 2)')
    parser.add_argument('--device', help='default: cuda:0 where there is one, else cpu')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    args = parser.parse_args(argv)
    if args.out.suffix.lower() not in ENDINGS:
        parser.error(f'--out must end in {", ".join(ENDINGS)}, got {args.out}')
    if args.size is None:
        args.size = 240 if args.out.suffix.lower() == '.png' else 480
    for name, least in (('boxes', 1), ('steps', 1), ('size', 16)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            parser.error(f'--{name} must be at least {least}, got {getattr(args, name)}')
    if not args.max_mib > 0:
        parser.error(f'--max-mib must be above 0, got {args.max_mib}')
    for kind, path in (('checkpoint', args.checkpoint), ('picture', args.picture)):
        if '://' not in str(path) and not Path(path).is_file():
            raise SystemExit(f'there is no {kind} {path}')
    if not args.out.resolve().parent.is_dir() or not os.access(args.out.resolve().parent, os.W_OK):
        raise SystemExit(f'--out {args.out}: the folder is not there or may not be written')
    return args


def dial_of(args: argparse.Namespace) -> dict:
    """Values of ``model.test_cfg``, but for those that ``--cfg-options`` alone give."""
    told = {option.split('=')[0] for option in args.cfg_options}
    given = {key: (getattr(args, name), value) for name, (key, value, _) in DIAL.items()}
    return {key: value if argument is None else argument for key, (argument, value) in given.items()
            if argument is not None or f'model.test_cfg.{key}' not in told}


def followed(predictor, path: Path, size: int) -> tuple:
    """The picture with its longer side at ``size``, and its boxes' ways in that size."""
    from mmengine.dataset import pseudo_collate
    from PIL import Image

    from mmdet_diffusion.visualization import follow_boxes, on_picture

    try:
        original, sample = predictor.read(path)
    except Exception as error:  # whatever decoders raise at what is no picture
        raise SystemExit(f'{path} cannot be used as a picture ({type(error).__name__})') from error
    data = predictor.model.data_preprocessor(pseudo_collate([sample]))
    moments, = follow_boxes(predictor.model, data)
    picture = Image.fromarray(original)
    return on_picture(moments, data['data_samples'][0], picture, size)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    args = parse_args(argv)
    from mmdet_diffusion.command_line import predictor_of
    from mmdet_diffusion.visualization import draw_story, write_animation
    from mmdet_diffusion.whole_file import write_whole_file

    predictor = predictor_of(args, dial_of(args))
    picture, moments = followed(predictor, args.picture, args.size)
    try:
        if args.out.suffix.lower() == '.png':
            buffer = io.BytesIO()
            draw_story(picture, moments, args.score_thr).save(buffer, format='PNG')
            write_whole_file(args.out, buffer.getvalue())
        else:
            write_animation(picture, moments, args.score_thr, args.out, round(args.max_mib * 2**20))
    except ValueError as error:
        raise SystemExit(str(error)) from error
    except OSError as error:
        raise SystemExit(f'cannot write {args.out}: {error.strerror or error}') from error
    scores = moments[-1].scores
    found = int((scores > args.score_thr).sum())
    print(f'{args.out}: {found} of {len(scores)} boxes end above {args.score_thr}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
