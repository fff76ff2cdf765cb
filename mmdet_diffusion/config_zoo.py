"""Where the configs and programs of this package lie, in a clone as in an installed wheel.

Only the standard library is imported, and nothing of this package: the command line answers from here at once.
"""

import difflib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def config_folder() -> Path:
    """The folder ``configs``: in ``.mim`` of an installed package, else beside the package in a clone.

    Raises:
        FileNotFoundError: if there is neither.
    """
    return _content('configs', 'diffusiondet')


def tools_folder() -> Path:
    """The folder ``tools``, found as :func:`config_folder` finds its own.

    Raises:
        FileNotFoundError: if there is none.
    """
    return _content('tools', 'dataset_converters')


def _content(name: str, part: str) -> Path:
    """A folder that goes with the package, known by a part of it."""
    for folder in (PACKAGE / '.mim' / name, PACKAGE.parent / name):
        if (folder / part).is_dir():
            return folder.resolve()
    raise FileNotFoundError(f'this installation of mmdet_diffusion in {PACKAGE} has no {name}; install it again with '
                            '`pip install .` in a clone')


def list_configs() -> list[str]:
    """Names of all configs, sorted: of this package's models, and of those that they are compared with."""
    return sorted(_configs())


def _configs() -> dict[str, Path]:
    """Files of all configs by name."""
    return {path.stem: path for folder in ('diffusiondet', 'benchmark')
            for path in (config_folder() / folder).glob('*.py')}


def config_path(name: str) -> str:
    """Path of a config, as ``Config.fromfile`` and ``DetInferencer`` take it.

    Args:
        name (str): one of :func:`list_configs`, such as ``diffusiondet_r50_fpn_8xb2-450k_coco``; ``.py`` may follow.

    Raises:
        ValueError: if there is no such config; names those that are spelt alike.
    """
    configs = _configs()
    stem = name.removesuffix('.py')
    if stem not in configs:
        near = difflib.get_close_matches(stem, configs, n=3, cutoff=0.4)
        raise ValueError(f'no config is called {name!r}; ' + (f'near it: {", ".join(near)}' if near else
                                                              '`mmdet-diffusion configs list` gives their names'))
    return str(configs[stem])


def resolve_config(config: str) -> str:
    """Path of a config that a command line gives by its name or by its path.

    Args:
        config (str): a name as :func:`config_path` takes it, without ``.py``; or a path, which is given back: that of a
            file that is there, or what has a folder or a suffix.

    Raises:
        ValueError: if it looks like a name, and no config has it; names those that are spelt alike.
    """
    path = Path(config)
    has_suffix = path.suffix and config not in list_configs()  # a name may have a dot
    if path.is_file() or has_suffix or len(path.parts) != 1:
        return config
    try:
        return config_path(config)
    except ValueError as error:
        raise ValueError(f'{error}; a path needs its .py') from error


def with_config_path(args: list[str]) -> list[str]:
    """Replace a bare config name, the first argument (launchers may put ``--local-rank=0`` before it), by its path.

    Raises:
        SystemExit: if it looks like a name, and no config has it.
    """
    return with_path_at(args, config_index(args))


def with_path_at(args: list[str], index: int | None) -> list[str]:
    """The same for a config that stands elsewhere; None: there is none.

    Raises:
        SystemExit: if it looks like a name, and no config has it.
    """
    if index is None:
        return args
    try:
        return [*args[:index], resolve_config(args[index]), *args[index + 1:]]
    except ValueError as error:
        raise SystemExit(str(error)) from error


def config_index(args: list[str]) -> int | None:
    """Where in a command line the config stands, None if it has none."""
    index = next((index for index, arg in enumerate(args) if not (arg.startswith('--') and '=' in arg)), len(args))
    return None if index == len(args) or args[index].startswith('-') else index


def refuse_missing_config(config: str | None) -> None:
    """Stop where the config of a command line, by its path, is no file.

    Args:
        config (str | None): None where the command line has none, which its own program will say.

    Raises:
        SystemExit: names the path, and configs of this package that are spelt alike.
    """
    if config is None or Path(config).is_file():
        return
    near = difflib.get_close_matches(Path(config).stem, list_configs(), n=3, cutoff=0.6)
    raise SystemExit(f'there is no config file {config}' +
                     (f'; near it, by name: {", ".join(near)}' if near else ''))
