"""What a device lacks, and how values come to it without the host waiting."""

import torch
from torch import Tensor

WITHOUT_FLOAT64 = frozenset(('mps', ))  # types of device; Apple's Metal has no such numbers
PINNED_FOR = frozenset(('cuda', ))  # types of device that copy from page-locked memory while the host goes on


def exact_float(device: torch.device) -> torch.dtype:
    """The widest float type of a device: float64, or float32 where there is none."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device.

    A GPU copies from page-locked memory whenever it comes to it. A copy from other memory, called blocking or not, may
    wait for all work that was given to the GPU before.

    Args:
        values (Tensor): on the host, any shape and type that the device has.
        device (torch.device): where they go.

    Returns:
        Tensor: the same values there; ``values`` itself where that is the host.
    """
    if device.type in PINNED_FOR:
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
