"""Operators of torchvision, where it is there and works."""

import functools
import importlib
from collections.abc import Callable


@functools.cache
def torchvision_operator(name: str) -> Callable | None:
    """An operator of ``torchvision.ops``.

    Args:
        name (str): of the operator.

    Returns:
        Callable | None: the operator; None where torchvision is not there, or was built for another torch.
    """
    try:
        operators = importlib.import_module('torchvision.ops')
        importlib.import_module('torchvision.extension')._assert_has_ops()  # its Python imports without its library
    except Exception:  # built for another torch, it raises RuntimeError, OSError or AttributeError as well
        return None
    return getattr(operators, name, None)
