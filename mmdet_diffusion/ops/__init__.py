"""Operators in plain torch."""

from .linear import linear
from .roi_align import FlatPyramid, flatten_pyramid, roi_align_rows

__all__ = ['FlatPyramid', 'flatten_pyramid', 'linear', 'roi_align_rows']
