"""Operators in plain torch."""

from .host_and_device import exact_float, upload
from .linear import linear
from .roi_align import FlatPyramid, flatten_pyramid, roi_align_rows

__all__ = ['FlatPyramid', 'exact_float', 'flatten_pyramid', 'linear', 'roi_align_rows', 'upload']
