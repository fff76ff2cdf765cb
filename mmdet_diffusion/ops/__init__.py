"""Operators in plain torch."""

from .roi_align import flatten_pyramid, roi_align_rows

__all__ = ['flatten_pyramid', 'roi_align_rows']
