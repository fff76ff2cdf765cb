"""Half precision by autocast: the types there are, and the devices that compute in them."""

from contextlib import AbstractContextManager

import torch

HALF_DTYPES = dict(float16=torch.float16, bfloat16=torch.bfloat16)
BFLOAT16_CAPABILITY = (8, 0)  # of the first GPUs that compute in it; earlier ones convert at every operation


def half_dtype(name: str, key: str) -> torch.dtype:
    """The type that a config names.

    Args:
        name (str): ``float16`` or ``bfloat16``.
        key (str): where it stands in the config, for the message.

    Returns:
        torch.dtype: the type.

    Raises:
        ValueError: if it is neither.
    """
    if name not in HALF_DTYPES:
        raise ValueError(f'{key} must be one of {", ".join(HALF_DTYPES)}, got {name!r}')
    return HALF_DTYPES[name]


def half_precision(device: torch.device, dtype: torch.dtype, key: str) -> AbstractContextManager:
    """Matrix products and convolutions in half precision; what needs range or digits stays in float32.

    Args:
        device (torch.device): of what is computed.
        dtype (torch.dtype): ``torch.float16`` or ``torch.bfloat16``.
        key (str): what asks for it in the config, for the message.

    Returns:
        AbstractContextManager: torch's autocast.

    Raises:
        RuntimeError: if the device does not compute in that type; names those that it does compute in.
    """
    lack = missing_support(device, dtype)
    if lack is not None:
        others = [name for name, other in HALF_DTYPES.items() if missing_support(device, other) is None]
        cures = ' or '.join([*others, 'leave it out for float32'])
        raise RuntimeError(f'{key} is {_name(dtype)}, but {lack}. Cure: {cures}')
    return torch.autocast(device.type, dtype)


def missing_support(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a device does not compute in a type, in words for a user; None where it does."""
    if device.type == 'cuda':
        if dtype is torch.bfloat16 and torch.cuda.get_device_capability(device) < BFLOAT16_CAPABILITY:
            return f'{torch.cuda.get_device_name(device)} does not compute in it (compute capability below 8.0)'
        return None
    if device.type == 'cpu':
        # Without oneDNN torch computes these products as well, up to 50 times slower than in float32.
        probe = dict(bfloat16='_is_mkldnn_bf16_supported', float16='_is_mkldnn_fp16_supported')[_name(dtype)]
        is_supported = getattr(torch.ops.mkldnn, probe, None)  # an older torch has only the first
        return None if is_supported is not None and is_supported() else 'this CPU has no instructions for it'
    return f'it was never tried on {device.type!r}'


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')
