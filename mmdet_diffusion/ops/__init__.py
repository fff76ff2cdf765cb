"""Operators in plain torch."""

from .linear import linear
from .roi_align import flatten_pyramid, roi_align_rows

__all__ = ['flatten_pyramid', 'linear', 'roi_align_rows']
