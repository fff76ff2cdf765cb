"""An exported folder: reads what belongs together, refuses what does not."""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from .errors import ExportError

SCHEMA_VERSION = 1
SAMPLER, FEATURES, REFINE = 'sampler.json', 'features.onnx', 'refine.onnx'
KEYS = ('schema_version', 'files', 'checkpoint', 'classes', 'input', 'diffusion', 'sampling', 'post_processing',
        'limits')


class ExportedFolder(NamedTuple):
    """A folder whose files are those that were exported together.

    Attributes:
        path (Path): of the folder.
        sampler (dict): content of ``sampler.json`` (docs/deployment.md).
    """

    path: Path
    sampler: dict


def sha256(path: str | os.PathLike) -> str:
    """Hash of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def is_exported_folder(path: str | os.PathLike) -> bool:
    """Whether there is a folder with a ``sampler.json``."""
    return (Path(path) / SAMPLER).is_file()


def read_folder(path: str | os.PathLike) -> ExportedFolder:
    """Read and check an exported folder.

    Args:
        path (str | os.PathLike): of the folder.

    Returns:
        ExportedFolder: see there.

    Raises:
        ExportError: if a file is missing, damaged, of another export or of a newer version of this package.
    """
    path = Path(path)
    if not is_exported_folder(path):
        raise ExportError(f'{path} is no exported folder: there is no {SAMPLER} in it')
    try:
        sampler = json.loads((path / SAMPLER).read_text(encoding='utf-8'))
    except (ValueError, OSError) as error:
        raise ExportError(f'{path / SAMPLER} cannot be read ({error}); export again') from error
    version = sampler.get('schema_version') if isinstance(sampler, dict) else None
    if version != SCHEMA_VERSION:
        raise ExportError(f'{path / SAMPLER} has schema version {version!r}, this package reads {SCHEMA_VERSION}; '
                          'export again with the version of mmdet_diffusion that runs it')
    missing = [key for key in KEYS if key not in sampler]
    if missing:
        raise ExportError(f'{path / SAMPLER} lacks {", ".join(missing)}; export again')
    for name in {FEATURES, REFINE} | set(sampler['files']):
        _check_file(path / name, sampler['files'].get(name))
    return ExportedFolder(path, sampler)


def _check_file(file: Path, expected: str | None) -> None:
    if not file.is_file():
        raise ExportError(f'there is no {file}, which {SAMPLER} names; export again')
    if sha256(file) != expected:
        raise ExportError(f'{file} is not the file that {SAMPLER} was written with (SHA-256 differs): damaged, or of '
                          'another export; copy the whole folder again')
