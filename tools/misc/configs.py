"""The configs of the package by name: list them, show one in full, copy one to edit, or write one for your own data.

A copy is the config with the files that it inherits from, so that it keeps its comments and works wherever it lies. A
new one is measured from annotation files in COCO format: classes, sizes of objects and input, number of boxes.

Example:
    mmdet-diffusion configs new my_configs/cells.py --train train.json --val val.json --images images
    mmdet-diffusion configs new my_configs/cells.py --train all.json --images images    # a fifth is kept to validate
"""

import argparse
import ast
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import new_config
import own_annotations

from mmdet_diffusion_cli import light_module

zoo = light_module('config_zoo')  # importing the package takes seconds


def bases(path: Path) -> list[Path]:
    """The files that a config inherits from, those of its bases included; itself first."""
    files = [path]
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', None) == '_base_':
            named = ast.literal_eval(node.value)
            for name in [named] if isinstance(named, str) else named:
                files += bases((path.parent / name).resolve())
    return list(dict.fromkeys(files))


def show(name: str) -> str:
    """A config with all that it inherits, as Python."""
    path = find(name)
    try:
        light_module('installation').check_installed()
    except ImportError as error:
        raise SystemExit(str(error)) from error
    from mmengine.config import Config  # not at the top: the other commands need only the standard library
    return Config.fromfile(path, import_custom_modules=False).pretty_text


def new(target: Path, train_file: Path, val_file: Path | None, images: Sequence[Path], val_share: float,
        flips: str) -> list[str]:
    """Write a config for a data set, its annotation files and what it inherits from; gives what there is to say of it.

    Args:
        target (Path): of the config.
        train_file (Path): annotations in COCO format.
        val_file (Path | None): the same, to validate. None: a part of the training file.
        images (Sequence[Path]): folder of the pictures, or those of either file.
        val_share (float): that part.
        flips (str): in training, ``horizontal`` or ``all``.

    Raises:
        SystemExit: if a file is not as it should be, is there already, or cannot be written; nothing is written then.
    """
    folders = [Path(os.path.abspath(folder)) for folder in (images[0], images[-1])]
    path = os.path.abspath(target)
    for mark in ('"', '{{', *(['\\'] if os.sep == '/' else [])):
        if mark in path:
            raise SystemExit(f'no config was written: {path} has {mark} in it, which mmengine misreads in the path of '
                             'a config; choose another folder or name')
    try:
        train = own_annotations.read_file(train_file, folders[0])
        train, val = (own_annotations.split(train, val_share) if val_file is None else
                      (train, own_annotations.read_file(val_file, folders[1])))
        data = own_annotations.data_set(train, val)
        chosen = new_config.choose(data)
        texts = {target: new_config.config_text(data, chosen, target.stem, *folders, flips),
                 **{target.with_name(f'{target.stem}_{name}.json'): json.dumps(content)
                    for name, content in (('train', data.train), ('val', data.val))}}
    except ValueError as error:
        raise SystemExit(f'no config was written: {error}') from error
    try:
        taken = [path for path, text in texts.items() if path.exists() and path.read_text(encoding='utf-8') != text]
        if taken:
            raise SystemExit(f'{taken[0]} is there and is another; nothing was written. Choose another name')
        copy(new_config.BASE, target.parent)
        for path, text in texts.items():
            write(path, text.encode())
    except OSError as error:
        raise SystemExit(f'cannot write {target}: {error.strerror}') from error
    config, work_dir = shlex.quote(str(target)), shlex.quote(f'work_dirs/{target.stem}')
    return [*map(str, texts), texts[target].splitlines()[0].lstrip('# '), *data.notes,
            *own_annotations.overlap(data, *folders), *new_config.warnings(data, chosen),
            'next:', f'  mmdet-diffusion train {config} --work-dir {work_dir}',
            f'  mmdet-diffusion dial {config} {work_dir}/iter_500.pth --settings '
            f'1x{chosen.boxes} 1x{3 * chosen.boxes} 4x{3 * chosen.boxes}']


def copy(name: str, folder: Path) -> Path:
    """Copy a config and its bases, all or none; gives the path of the copy.

    Raises:
        SystemExit: if a file that is there is another one, or the folder cannot be written.
    """
    source = Path(find(name)).resolve()
    copies = {file: folder / file.relative_to(zoo.config_folder()) for file in bases(source)}
    for parent in {parent for target in copies.values() for parent in target.parents}:
        if parent.exists() and not parent.is_dir():
            raise SystemExit(f'cannot write to {folder}: {parent} is no folder')
    for file, target in copies.items():
        if target.exists() and (target.is_dir() or target.read_bytes() != file.read_bytes()):
            raise SystemExit(f'{target} is there and is another; nothing was copied. Choose another folder')
    try:
        for file, target in copies.items():
            write(target, file.read_bytes())
    except OSError as error:
        raise SystemExit(f'cannot write to {folder}: {error.strerror}') from error
    return copies[source]


def write(path: Path, content: bytes) -> None:
    """Write a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def find(name: str) -> str:
    """Path of a config by its name."""
    try:
        return zoo.config_path(name)
    except ValueError as error:
        raise SystemExit(str(error)) from error


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True, metavar='{list,show,copy,new}')
    commands.add_parser('list', help='names of all configs')
    shown = commands.add_parser('show', help='print a config with all that it inherits')
    copied = commands.add_parser('copy', help='copy a config and the files that it inherits from')
    for command in (shown, copied):
        command.add_argument('name', help='as `list` prints it')
    copied.add_argument('folder', type=Path, nargs='?', default=Path('configs'), help='default: configs')
    made = commands.add_parser('new', help='write a config for annotation files in COCO format')
    made.add_argument('config', type=Path, help='file to write, such as my_configs/cells.py')
    made.add_argument('--train', type=Path, required=True, help='annotation file to train on')
    made.add_argument('--val', type=Path, help='annotation file to validate; default: a part of the other')
    made.add_argument('--val-share', type=float, help='that part of the pictures (default 0.2)')
    made.add_argument('--images', type=Path, nargs='+', required=True, metavar='FOLDER',
                      help='of the pictures; two where those of the second file are elsewhere')
    made.add_argument('--flips', choices=list(new_config.FLIPS), default='horizontal',
                      help='all: of pictures without an up and down, as from microscopes or from above')
    args = parser.parse_args(argv)
    if args.command == 'new':
        if args.config.suffix != '.py' or not args.config.stem.isidentifier() or len(args.config.stem) > 100:
            parser.error(f'a config is a file such as cells.py, of letters, digits and underscores; got {args.config}')
        if {'_base_', 'benchmark', 'diffusiondet'} & set(args.config.parent.parts[-1:]):
            parser.error(f'{args.config.parent} is for the files that configs inherit from; choose another folder')
        if args.val is not None and args.val_share is not None:
            parser.error('--val-share goes without --val')
        args.val_share = 0.2 if args.val_share is None else args.val_share
        if len(args.images) > (2 if args.val else 1):
            parser.error(f'--images takes a folder for each annotation file, got {len(args.images)} folders')
        if not 0 < args.val_share < 1:
            parser.error(f'--val-share must lie between 0 and 1, got {args.val_share}')
    return args


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    args = parse_args(argv)
    if args.command == 'list':
        print('\n'.join(zoo.list_configs()))
    elif args.command == 'show':
        print(show(args.name))
    elif args.command == 'copy':
        print(copy(args.name, args.folder))
    else:
        print('\n'.join(new(args.config, args.train, args.val, args.images, args.val_share, args.flips)))
    return 0


if __name__ == '__main__':
    sys.exit(main())
