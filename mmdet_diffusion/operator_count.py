"""Counts operators, and the places where the host and a GPU wait for each other."""

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

# Operators whose result's value or shape the host has to know before it can go on.
READS = frozenset((
    '_local_scalar_dense', 'nonzero', 'masked_select', 'equal', 'bincount', '_unique', '_unique2', 'unique_dim',
    'unique_consecutive', 'unique_dim_consecutive'))
INDEXING = frozenset(('index', 'index_put', 'index_put_', '_index_put_impl_', '_unsafe_index'))
COPIES = frozenset(('_to_copy', 'copy_', '_copy_from'))
# Methods that leave no trace among the operators when a tensor is on the host already.
SILENT_READS = frozenset(('tolist', 'numpy', 'cpu', '__array__'))
MAKE_FROM_HOST_DATA = dict(tensor=0, new_tensor=1, as_tensor=0)  # place of the data among the arguments


class Wait(NamedTuple):
    """One place where the host and the device wait for each other.

    Attributes:
        operator (str): what was called.
        place (str): module and line of the innermost caller outside torch.
    """

    operator: str
    place: str


class OperatorCount:
    """Counts what is dispatched while it is entered.

    The device decides what a wait is. With ``'cpu'`` reads count as if the tensors were on a GPU, those of tables
    that live on the host by design included, and uploads cannot be seen. One kind of read is not seen there either: a
    copy to a ``torch.device``, which mostly is that of another tensor, and then the GPU's on a GPU; only ``cpu()`` and
    ``to('cpu')`` say that they mean the host. With ``'meta'`` and modules and inputs on the meta device that device
    stands for a GPU: every read counts and raises, host tables do not count, uploads do. So a pass over ``'meta'``
    shows without a GPU that nothing waits.

    Only what goes through torch's dispatcher is seen: the insides of mmcv's operators are not.

    Args:
        device (str): type of the device that counts as the GPU.

    Attributes:
        operators (int): all that were dispatched.
        reads (list[Wait]): the host waits for a value or a shape, or copies from the device.
        uploads (list[Wait]): copies from the host to the device that CUDA may wait for all work before: blocking ones,
            and those called non-blocking whose memory is not page-locked.
        pinned_uploads (list[Wait]): non-blocking copies from page-locked memory; nothing waits for them.
    """

    def __init__(self, device: str = 'cpu') -> None:
        self.device = device
        self.operators = 0
        self.reads: list[Wait] = []
        self.uploads: list[Wait] = []
        self.pinned_uploads: list[Wait] = []
        self._modes = ExitStack()

    def __enter__(self) -> 'OperatorCount':
        self._modes.enter_context(_Functions(self))
        self._modes.enter_context(_Operators(self))
        return self

    def __exit__(self, *exception) -> None:
        self._modes.__exit__(*exception)

    def places(self) -> dict[str, int]:
        """How often each place waits, reads and uploads together."""
        return dict(Counter(f'{wait.operator} at {wait.place}' for wait in [*self.reads, *self.uploads]))

    def on_device(self, values: object) -> bool:
        """Whether any tensor in a nested structure is on the device."""
        return any(isinstance(value, Tensor) and value.device.type == self.device for value in tree_flatten(values)[0])


class _Operators(TorchDispatchMode):
    """Sees operators, after autograd."""

    def __init__(self, count: OperatorCount) -> None:
        super().__init__()
        self.count = count

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.split('::')[1]
        count = self.count
        count.operators += 1
        if count.on_device((args, kwargs)) and (name in READS or self._gives_unknown_shape(name, args, kwargs)):
            count.reads.append(Wait(name, _caller()))
        elif name in COPIES:
            self._record_copy(name, args, kwargs)
        return func(*args, **kwargs)

    @staticmethod
    def _gives_unknown_shape(name: str, args: Sequence, kwargs: dict) -> bool:
        """Whether the number of results depends on values: indices by a mask, repeats without a total."""
        if name in INDEXING:
            return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        return name == 'repeat_interleave' and kwargs.get('output_size') is None

    def _record_copy(self, name: str, args: Sequence, kwargs: dict) -> None:
        """Note a copy between the host and the device."""
        first = args[0]
        values, target = (args[1], first) if name == 'copy_' else (first, None)
        source = values.device.type
        target = target.device.type if target is not None else torch.device(kwargs.get('device') or source).type
        if source == target:
            return
        if target == 'cpu' and source == self.count.device:
            self.count.reads.append(Wait(name, _caller()))
        elif target == self.count.device:
            waits_for_nothing = (kwargs.get('non_blocking') or True in args[2:3]) and values.is_pinned()
            uploads = self.count.pinned_uploads if waits_for_nothing else self.count.uploads
            uploads.append(Wait(name, _caller()))


class _Functions(TorchFunctionMode):
    """Sees calls that are no operators."""

    def __init__(self, count: OperatorCount) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, '__name__', '')
        if self.count.device == 'cpu' and self._is_silent_read(name, args, kwargs):
            self.count.reads.append(Wait(name, _caller()))
        result = func(*args, **kwargs)
        if (self.count.device != 'cpu' and self.count.on_device(result)
                and self._is_made_from_host_data(name, args, kwargs)):
            self.count.uploads.append(Wait(name, _caller()))
        return result

    @staticmethod
    def _is_made_from_host_data(name: str, args: Sequence, kwargs: dict) -> bool:
        """Whether numbers, lists or arrays become a tensor; one made from a tensor is a copy among the operators."""
        if name not in MAKE_FROM_HOST_DATA:
            return False
        data = kwargs['data'] if 'data' in kwargs else args[MAKE_FROM_HOST_DATA[name]]
        return not isinstance(data, Tensor)

    @staticmethod
    def _is_silent_read(name: str, args: Sequence, kwargs: dict) -> bool:
        targets = [*args[1:], *kwargs.values()]
        return name in SILENT_READS or (name == 'to' and any(isinstance(value, str) and value == 'cpu'
                                                            for value in targets))


def _caller() -> str:
    """Module and line of the innermost frame that is neither torch's nor of this module."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get('__name__', '?')
        if module != __name__ and module.split('.')[0] != 'torch':
            return f'{module}:{frame.f_lineno}'
        frame = frame.f_back
    return 'unknown'
