"""Training-time hooks."""

from .checkpoint_report_hook import CheckpointReportHook
from .dataset_check_hook import DatasetCheckHook

__all__ = ['CheckpointReportHook', 'DatasetCheckHook']
