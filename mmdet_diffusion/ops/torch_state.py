"""What torch is doing right now, asked in words that every supported version (2.1 and later) understands."""

from contextlib import AbstractContextManager, nullcontext

import torch


def is_compiling() -> bool:
    """Whether ``torch.compile`` or ``torch.export`` is reading the code that asks."""
    if hasattr(torch.compiler, 'is_compiling'):  # torch 2.3
        return torch.compiler.is_compiling()
    return torch._utils.is_compiling()


def is_recorded() -> bool:
    """Whether a trace, ``torch.compile`` or ``torch.export`` keeps the operators that run, maybe for elsewhere."""
    return is_compiling() or torch.jit.is_tracing()


def autocasts_on_cpu() -> bool:
    """Whether autocast is on for a CPU's operators."""
    if hasattr(torch.amp, 'is_autocast_available'):  # torch 2.4, where the other one began to warn
        return torch.is_autocast_enabled('cpu')
    return torch.is_autocast_cpu_enabled()


def float32_on_cpu() -> AbstractContextManager:
    """Within it a CPU's autocast is off: for what is slower there in half precision. Other devices' stays on."""
    return torch.autocast('cpu', enabled=False) if autocasts_on_cpu() else nullcontext()
