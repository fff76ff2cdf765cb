"""Names for results by what they were made of: the same weights, data, settings and code give the same name."""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import torch
from mmengine.config import Config
from torch import Tensor

import mmcv_stand_in
from diffusiondet_runtime.folder import sha256

from ..version import __version__

PACKAGE = 'mmdet_diffusion'
STACK = ('torch', 'mmengine', 'mmcv', 'mmdet', 'numpy', 'pycocotools')


def content_key(parts: Mapping[str, object]) -> str:
    """Key of what a result is made of.

    Args:
        parts (Mapping[str, object]): of JSON's types; others count by their text.

    Returns:
        str: 16 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors of a state dict and their names; the file that they came in does not matter."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f'{name} {value.dtype} {tuple(value.shape)} '.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def data_digest(images: Iterable[Mapping[str, object]]) -> str:
    """SHA-256 of a data set.

    Args:
        images (Iterable[Mapping[str, object]]): information on each image as MMDetection's data sets give it:
            ``img_path``, ``instances`` and so on. Of a file its name and content count, not the folder.
    """
    digest = hashlib.sha256()
    for image in images:
        path = Path(str(image.get('img_path', '')))
        content = _file_digest(path) if path.is_file() else None
        objects = [[list(map(float, one['bbox'])), one['bbox_label'], one.get('ignore_flag', 0)]
                   for one in image.get('instances', ())]
        digest.update(json.dumps([str(image.get('img_id')), path.name, content, objects]).encode())
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    status = path.stat()
    return _digest_of_state(path, status.st_mtime_ns, status.st_size)


@cache  # detectors have the same pictures
def _digest_of_state(path: Path, changed: int, size: int) -> str:
    return sha256(path)


def code_digest(config: Config) -> dict[str, str]:
    """What computes: versions of this package and of what it stands on, which operators mmcv has, and SHA-256 of the
    sources of this package, of the stand-ins where they are in use, and of what a config imports (``custom_imports``).

    Args:
        config (Config): whose imports have been done.
    """
    imports = (config.get('custom_imports') or {}).get('imports', ())
    names = {PACKAGE, *([imports] if isinstance(imports, str) else imports)}
    operators = 'compiled'
    if mmcv_stand_in.is_active():
        operators = 'stand-ins'
        names.add('mmcv_stand_in')
    sources = {name: _sources(sys.modules[name]) for name in sorted(names) if name in sys.modules}
    return dict(mmdet_diffusion=__version__, operators=operators, sources=sources,
                **{name: _version(name) for name in STACK})


def _sources(module: ModuleType) -> str:
    """SHA-256 of the files of a module, or of a package with all of its parts."""
    file = getattr(module, '__file__', None)
    if file is None:
        return 'unknown'
    path, digest = Path(file), hashlib.sha256()
    for one in sorted(path.parent.rglob('*.py')) if path.name == '__init__.py' else [path]:
        digest.update(one.relative_to(path.parent).as_posix().encode() + one.read_bytes())
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # under another name, as mmcv-lite is
        return getattr(import_module(name), '__version__', 'unknown')
