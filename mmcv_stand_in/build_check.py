"""Refuses, while a model is built, a layer whose operator has no stand-in: not at the first batch."""

import functools

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from .without_stand_in import family_of_layer, refusal


def refuse_layers_without_stand_in() -> None:
    """From now on, putting such a layer into a model raises; whichever way the model is built."""
    register_module_module_registration_hook(_check)


def _check(parent: nn.Module, name: str, layer: nn.Module | None) -> None:
    if layer is not None:
        _check_class(type(layer))


@functools.cache
def _check_class(layer: type) -> None:
    """An exception is not cached: every such layer raises."""
    for base in layer.__mro__:
        package, _, module = base.__module__.rpartition('.')
        family = family_of_layer(base.__name__) if package == 'mmcv.ops' else None
        if family is not None:
            raise NotImplementedError(refusal(f'{layer.__name__} (mmcv.ops.{module})', family))
