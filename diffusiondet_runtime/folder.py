"""An exported folder: reads what belongs together, refuses what does not."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .errors import ExportError

SCHEMA_VERSION = 1
SAMPLER, FEATURES, REFINE = 'sampler.json', 'features.onnx', 'refine.onnx'
NUMBER, NONE = (int, float), type(None)
# What is read, by what it may be. A tuple is of kinds; of [kind] and {str: kind} every element is one.
FORM = dict(
    schema_version=int, files={str: str}, checkpoint=dict, classes=[str],
    input=dict(resize=(dict, NONE), mean=[NUMBER], std=[NUMBER], channel_order=str, size_divisor=int, pad_value=NUMBER),
    diffusion=dict(alpha_bar=[NUMBER]),
    sampling=dict(steps=int, boxes=int, eta=NUMBER, renewal_score_thr=(*NUMBER, NONE), ensemble=str),
    post_processing=dict(score_thr=NUMBER, nms=(dict, NONE), max_per_img=(int, NONE), min_bbox_size=NUMBER),
    limits=dict(bytes_per_box=int, bytes_per_pair=int))
FRAMES = (dict(signal_scale=NUMBER), dict(sizes=dict(log_scale=[NUMBER], log_aspect=[NUMBER])))


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
    fault = next(_faults(sampler, FORM), None)
    if not fault:
        diffusion = sampler['diffusion']
        fault = next(_faults(diffusion, FRAMES['sizes' in diffusion], 'diffusion'), None)
    if fault:
        raise ExportError(f'{path / SAMPLER} {fault}; export again')
    for name in {FEATURES, REFINE} | set(sampler['files']):
        _check_file(path / name, sampler['files'].get(name))
    return ExportedFolder(path, sampler)


def _check_file(file: Path, expected: str | None) -> None:
    if not file.is_file():
        raise ExportError(f'there is no {file}, which {SAMPLER} names; export again')
    if sha256(file) != expected:
        raise ExportError(f'{file} is not the file that {SAMPLER} was written with (SHA-256 differs): damaged, or of '
                          'another export; copy the whole folder again')


def _faults(value: object, form: object, place: str = '') -> Iterator[str]:
    """What of a value is not of the form, in words that follow the file's name."""
    if isinstance(form, dict) and str not in form:
        missing = [key for key in form if not isinstance(value, dict) or key not in value]
        if missing:
            yield f'lacks {", ".join(f"{place}.{key}".lstrip(".") for key in missing)}'
        else:
            for key, inner in form.items():
                yield from _faults(value[key], inner, f'{place}.{key}'.lstrip('.'))
        return
    kind = dict if isinstance(form, dict) else list if isinstance(form, list) else form
    if not isinstance(value, kind) or isinstance(value, bool):
        yield f'holds {json.dumps(value)[:60]} where {place} should be'
    elif isinstance(form, (dict, list)):
        elements, inner = (value.values(), form[str]) if isinstance(form, dict) else (value, form[0])
        for element in elements:
            yield from _faults(element, inner, place)
