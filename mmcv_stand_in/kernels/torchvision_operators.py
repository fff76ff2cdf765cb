"""Operators of torchvision, where it is there and works."""

import functools
import importlib
from collections.abc import Callable

import torch


@functools.cache
def torchvision_operator(name: str, device_type: str) -> Callable | None:
    """An operator of ``torchvision.ops``.

    Args:
        name (str): of the operator.
        device_type (str): of the device that it is to run on.

    Returns:
        Callable | None: the operator; None where torchvision is not there, was built for another torch, or without
        the device.
    """
    try:
        operators = importlib.import_module('torchvision.ops')
        # Its Python can be imported without its library, and the library be built without CUDA: try it.
        operators.nms(torch.ones(1, 4, device=device_type), torch.ones(1, device=device_type), 0.5)
        return getattr(operators, name)
    except Exception:  # built for another torch, it raises RuntimeError, OSError or AttributeError as well
        return None
