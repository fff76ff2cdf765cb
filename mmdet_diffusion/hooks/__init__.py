"""Training-time hooks."""

from .dataset_check_hook import DatasetCheckHook

__all__ = ['DatasetCheckHook']
