"""Training-time hooks."""

from .atomic_checkpoint_hook import AtomicCheckpointHook
from .checkpoint_report_hook import CheckpointReportHook
from .dataset_check_hook import DatasetCheckHook

__all__ = ['AtomicCheckpointHook', 'CheckpointReportHook', 'DatasetCheckHook']
