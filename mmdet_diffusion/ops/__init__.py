"""Operators in plain torch."""

from .flop_formulas import register_flop_formulas
from .host_and_device import exact_float, upload
from .linear import fast_linear
from .roi_align import FlatPyramid, flatten_pyramid, roi_align_rows
from .torch_state import float32_on_cpu, is_compiling, is_recorded

register_flop_formulas()

__all__ = [
    'FlatPyramid', 'exact_float', 'fast_linear', 'flatten_pyramid', 'float32_on_cpu', 'is_compiling', 'is_recorded',
    'roi_align_rows', 'upload'
]
