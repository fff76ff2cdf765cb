"""Checkpoint files: read without running what is in them, written whole or not at all."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import torch
from diffusiondet_keys import ConversionError
from torch import Tensor

WRAPPERS = ('ema_state', 'model', 'state_dict')  # averaged weights first: they are what is meant for testing


class Source(NamedTuple):
    """Weights as they were read.

    Attributes:
        state (dict[str, Tensor]): the state dict.
        wrapper (str | None): key under which it was found; None where the file is a plain state dict.
    """

    state: dict[str, Tensor]
    wrapper: str | None


def read_source(file: Path) -> Source:
    """Read a checkpoint without running any code that it may hold.

    Args:
        file (Path): of ``torch.save``: a state dict, or a dict with one under one of ``WRAPPERS``.

    Returns:
        Source: the weights, without the ``module.`` that distributed training puts before every name.

    Raises:
        ConversionError: if the file is missing, unsafe, or holds no state dict.
    """
    if not file.is_file():
        raise ConversionError(f'{file} is not a file')
    try:
        content = torch.load(file, map_location='cpu', weights_only=True)
    except Exception as error:
        # torch's own message is a page that ends in advice to switch the safety check off
        forbidden = re.search(r'GLOBAL ([\w.]+)', str(error))
        reason = ('it is empty' if not file.stat().st_size else
                  f'it asks for {forbidden[1]}' if forbidden else type(error).__name__)
        raise ConversionError(f'{file} cannot be read as tensors; expected a checkpoint of torch.save, '
                              f'whole and unchanged ({reason})') from error
    wrapper = next((key for key in WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)
                    and content[key]), None)
    state = content[wrapper] if wrapper else content
    if not isinstance(state, dict) or not state or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise ConversionError(f'{file} holds no state dict; expected one, or a dict with one under '
                              f'{", ".join(map(repr, WRAPPERS))}')
    return Source({name.removeprefix('module.'): value for name, value in state.items()}, wrapper)


def refuse_destination(destination: Path) -> None:
    """Raise a ConversionError where the destination exists or its folder does not."""
    if destination.exists():
        raise ConversionError(f'{destination} exists already; delete it or choose another name')
    if not destination.parent.is_dir():
        raise ConversionError(f'{destination} cannot be written: {destination.parent} is not a folder')


def write(state: dict[str, Tensor], meta: dict, destination: Path) -> None:
    """Save beside the destination and move into place, so that nothing half-written stays behind.

    Args:
        state (dict[str, Tensor]): in this package's layout.
        meta (dict): what is kept beside the weights.
        destination (Path): must not exist.

    Raises:
        ConversionError: if the destination exists or cannot be written.
    """
    refuse_destination(destination)
    temporary = destination.with_name(f'.{destination.name}.{os.getpid()}.tmp')  # with the user's own permissions
    try:
        with temporary.open('xb') as file:
            torch.save({'meta': meta, 'state_dict': state}, file)
        temporary.replace(destination)
    except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
        reason = getattr(error, 'strerror', None) or error
        raise ConversionError(f'{destination} cannot be written: {reason}') from error
    finally:
        temporary.unlink(missing_ok=True)
