"""CUDA's autocast for a made device: torch's own code for CUDA says to which type each operator's inputs are cast."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only


class Reached(Exception):  # noqa: N818  no error
    """The operator that CUDA's autocast goes on to, with what it gives it."""


class Probe(Tensor):
    """Stands for a tensor in CUDA's autocast: notes to which type it is cast."""

    @staticmethod
    def __new__(cls, origin, dtype, casts):
        return Tensor._make_wrapper_subclass(cls, origin.shape, dtype=dtype, device='cuda')

    def __init__(self, origin, dtype, casts):
        self.origin, self.casts = origin, casts

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            probe, dtype = args[0], kwargs['dtype']
            probe.casts[id(probe.origin)] = dtype
            return Probe(probe.origin, dtype, probe.casts)
        raise Reached(func, args, kwargs or {})


def as_cuda_casts(op, dtype, args, kwargs):
    """Arguments of a call as CUDA's autocast gives them on."""
    casts = {}
    probes = tree_map_only(Tensor, lambda value: Probe(value, value.dtype, casts), (args, kwargs))
    was = torch.is_autocast_enabled('cuda'), torch.get_autocast_dtype('cuda')
    torch.set_autocast_enabled('cuda', True)
    torch.set_autocast_dtype('cuda', dtype)
    try:
        with _disable_current_modes():
            op(*probes[0], **probes[1])
        raise AssertionError(f'{op} reached no operator')
    except Reached as reached:
        func, reached_args, reached_kwargs = reached.args
    finally:
        torch.set_autocast_enabled('cuda', was[0])
        torch.set_autocast_dtype('cuda', was[1])
    if func is op:  # else a composite one, which has the types of its parts
        args, kwargs = tree_map_only(Probe, lambda probe: probe.origin, (reached_args, reached_kwargs))
    return tree_map_only(Tensor, lambda value: value.to(casts.get(id(value), value.dtype)), (args, kwargs))


def register(device):
    """Give a made device the autocast of CUDA; what this returns has to live as long as it is wanted."""
    everything = torch.library.Library('_', 'IMPL')
    everything.fallback(torch.library.fallthrough_kernel, 'AutocastPrivateUse1')
    operators = torch.library.Library('aten', 'IMPL')
    below = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    for name in torch._C._dispatch_get_registrations_for_dispatch_key('AutocastCUDA'):
        namespace, name = name.split('::')
        packet, _, overload = name.partition('.')
        op = getattr(getattr(torch.ops.aten, packet, None), overload or 'default', None)
        if namespace != 'aten' or op is None:
            continue

        def kernel(*args, op=op, **kwargs):
            dtype = torch.get_autocast_dtype(device)
            args, kwargs = as_cuda_casts(op, dtype, args, kwargs)
            with torch._C._ExcludeDispatchKeyGuard(below):
                return op(*args, **kwargs)

        operators.impl(op, kernel, 'AutocastPrivateUse1')
    return everything, operators
