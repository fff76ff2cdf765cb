"""Names for results by what they were made of: the same weights, data, settings and code give the same name."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from ..version import __version__

PACKAGE = Path(__file__).resolve().parents[1]
STACK = ('torch', 'mmengine', 'mmdet', 'numpy', 'pycocotools')


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
            ``img_path``, ``instances`` and so on. Of a file its name and size count, not the folder.
    """
    digest = hashlib.sha256()
    for image in images:
        path = Path(str(image.get('img_path', '')))
        size = path.stat().st_size if path.is_file() else None
        objects = [[list(map(float, one['bbox'])), one['bbox_label'], one.get('ignore_flag', 0)]
                   for one in image.get('instances', ())]
        digest.update(json.dumps([str(image.get('img_id')), path.name, size, objects]).encode())
    return digest.hexdigest()


def code_digest() -> dict[str, str]:
    """Version and SHA-256 of this package's sources, and versions of what it stands on."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob('*.py')):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return dict(mmdet_diffusion=__version__, sources=digest.hexdigest(), **{name: _version(name) for name in STACK})


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # of a fork, under another name
        return 'unknown'
