"""The configs of the package by name: list them, show one in full, or copy one to edit.

A copy is the config with the files that it inherits from, so that it keeps its comments and works wherever it lies.
"""

import argparse
import ast
import os
import sys
from pathlib import Path

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


def copy(name: str, folder: Path) -> Path:
    """Copy a config and its bases, all or none; gives the path of the copy.

    Raises:
        SystemExit: if a file that is there is another one, or the folder cannot be written.
    """
    source = Path(find(name)).resolve()
    copies = {file: folder / file.relative_to(zoo.config_folder()) for file in bases(source)}
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
    commands = parser.add_subparsers(dest='command', required=True, metavar='{list,show,copy}')
    commands.add_parser('list', help='names of all configs')
    shown = commands.add_parser('show', help='print a config with all that it inherits')
    copied = commands.add_parser('copy', help='copy a config and the files that it inherits from')
    for command in (shown, copied):
        command.add_argument('name', help='as `list` prints it')
    copied.add_argument('folder', type=Path, nargs='?', default=Path('configs'), help='default: configs')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    args = parse_args(argv)
    if args.command == 'list':
        print('\n'.join(zoo.list_configs()))
    elif args.command == 'show':
        print(show(args.name))
    else:
        print(copy(args.name, args.folder))
    return 0


if __name__ == '__main__':
    sys.exit(main())
