"""A page in the browser on which to turn the dial of a trained detector: boxes, steps, threshold, eta, renewal, seed.

Example:
    python tools/web.py CONFIG CHECKPOINT --examples pictures/

Drop a picture or take an example. Backbone and neck run once a picture, a slider runs the head alone; each box can be
followed through steps and stages. For this machine alone unless --host says otherwise; nothing is kept on disk, and the
page asks nothing of other machines. Ctrl-C ends it.
"""

import argparse
import sys
from pathlib import Path

MOST_EXAMPLES = 24
EXAMPLES_OF_CONFIG = 6


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line, checked as far as that goes without torch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='path, or name of one of this package')
    parser.add_argument('checkpoint', help='path or address')
    parser.add_argument('--examples', nargs='+', default=[], metavar='PICTURE',
                        help="pictures, folders or quoted globs to offer (default: some of the config's test set)")
    parser.add_argument('--host', default='127.0.0.1',
                        help='address to listen on (default 127.0.0.1: for this machine alone; 0.0.0.0: for all)')
    parser.add_argument('--port', type=int, default=8000, help='default 8000; 0 takes a free one')
    parser.add_argument('--pictures', type=int, default=8,
                        help='that are held in memory with their features, about 90 MiB each at 800 x 1333 (default 8)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='where the slider starts (default 0.3)')
    parser.add_argument('--device', help='default: cuda:0 where there is one, else cpu')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    args = parser.parse_args(argv)
    if not 0 <= args.port <= 65535:
        parser.error(f'--port must lie in 0..65535, got {args.port}')
    if args.pictures < 1:
        parser.error(f'--pictures must be at least 1, got {args.pictures}')
    if not 0 <= args.score_thr <= 1:
        parser.error(f'--score-thr must lie in 0..1, got {args.score_thr}')
    if '://' not in args.checkpoint and not Path(args.checkpoint).is_file():
        raise SystemExit(f'there is no checkpoint {args.checkpoint}')
    return args


def named_examples(words: list[str]) -> list[Path]:
    """Pictures of the command line."""
    from diffusiondet_runtime.sources import find_sources

    sources = find_sources(words)
    if sources.failed:
        raise SystemExit('\n'.join(f'--examples {source}: {reason}' for source, reason in sources.failed.items()))
    return [item for item in sources.items if isinstance(item, Path)][:MOST_EXAMPLES]


def examples_of(config) -> list[Path]:
    """Some pictures of the config's test set; none where it is not there."""
    from diffusiondet_runtime.sources import find_sources
    from mmdet_diffusion.input_checks import dataset_paths, datasets

    for dataset, key in datasets(config.test_dataloader.dataset, 'test_dataloader.dataset'):
        for kind, path, _ in dataset_paths(dataset, key):
            if kind == 'folder of images' and Path(path).is_dir():
                return [item for item in find_sources([path]).items if isinstance(item, Path)][:EXAMPLES_OF_CONFIG]
    return []


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    args = parse_args(argv)
    examples = named_examples(args.examples)
    from mmdet_diffusion.command_line import predictor_of
    from mmdet_diffusion.detectors import DiffusionDet
    from mmdet_diffusion.web import PageServer, PictureDial

    try:
        server = PageServer(args.host, args.port)
    except OSError as error:
        raise SystemExit(f'cannot listen on {args.host}, port {args.port}: {error.strerror or error}; '
                         '--port 0 takes a free one') from error
    with server:
        predictor = predictor_of(args, {})
        if not isinstance(predictor.model, DiffusionDet):
            raise SystemExit(f'{args.config} is a {type(predictor.model).__name__}, not a DiffusionDet: it has no dial')
        server.dial = PictureDial(predictor, args.pictures)
        server.examples = examples or examples_of(predictor.config)
        try:
            server.about = dict(config=Path(args.config).stem, score_thr=args.score_thr, **server.dial.about())
        except ValueError as error:  # the config starts beyond what the page allows
            raise SystemExit(str(error)) from error
        note = '' if server.is_local else ' (whoever reaches this machine can use it)'
        print(f'The page is at {server.address}{note}. Ctrl-C ends it.', flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


if __name__ == '__main__':
    sys.exit(main())
