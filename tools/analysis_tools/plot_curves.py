"""Learning curves of one or several trainings in one plot, over iterations and over seconds of training.

Example:
    python tools/analysis_tools/plot_curves.py work_dirs/ours work_dirs/retina --out curves.png
    python tools/analysis_tools/plot_curves.py ours=work_dirs/ours_0 ours=work_dirs/ours_1 --metric bbox_mAP_50 --loss

Trainings under one name have one colour. Reads the logs that mmengine writes into a work folder; a resumed training's
are joined. Seconds leave validation out.
"""

import argparse
import sys
from pathlib import Path

ENDINGS = ('.png', '.svg', '.pdf')


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', metavar='[NAME=]FOLDER', help='work folders')
    parser.add_argument('--out', type=Path, default=Path('curves.png'), help='default: curves.png')
    parser.add_argument('--metric', default='bbox_mAP', help="a figure of validation, without the evaluator's prefix")
    parser.add_argument('--loss', action='store_true', help='the loss of training too')
    args = parser.parse_args(argv)
    if args.out.suffix.lower() not in ENDINGS:
        parser.error(f'--out must end in {", ".join(ENDINGS)}, got {args.out}')
    args.runs = [named(text) for text in args.runs]
    for _, folder in args.runs:
        if not folder.is_dir():
            raise SystemExit(f'there is no folder {folder}')
    return args


def named(text: str) -> tuple[str, Path]:
    """``[NAME=]FOLDER`` to both; the folder's own name where none is given."""
    name, separator, path = text.partition('=')
    folder = Path(path if separator else text)
    return (name if separator else folder.resolve().name), folder


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    args = parse_args(argv)
    from mmdet_diffusion.evaluation.learning_curves import draw_curves, learning_curve, metric_names

    curves = {}
    for name, folder in args.runs:
        curve = learning_curve(folder, args.metric)
        if not curve.values and not (args.loss and curve.losses):
            known = ', '.join(metric_names(folder))
            raise SystemExit(f'{folder} has no {args.metric!r} in its logs (*/vis_data/scalars.json); '
                             + (f'it has {known}' if known else 'it was not validated, or is no work folder'))
        curves.setdefault(name, []).append(curve)
    try:
        draw_curves(curves, args.out, metric=args.metric, with_losses=args.loss)
    except OSError as error:
        raise SystemExit(f'cannot write {args.out}: {error.strerror or error}') from error
    for name, runs in curves.items():
        for curve in runs:
            if not curve.values:
                step, loss = curve.losses[-1]
                print(f'{name}: not validated; loss {loss:.3f} after {step} iterations')
                continue
            best = max(range(len(curve.values)), key=curve.values.__getitem__)
            print(f'{name}: {args.metric} {curve.values[-1]:.3f} after {curve.iterations[-1]} iterations, '
                  f'{curve.seconds[-1]:.0f} s; best {curve.values[best]:.3f} after {curve.iterations[best]}')
    print(args.out)
    return 0


if __name__ == '__main__':
    sys.exit(main())
