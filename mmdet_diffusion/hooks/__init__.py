"""Training-time hooks."""

from .atomic_checkpoint_hook import AtomicCheckpointHook
from .checkpoint_report_hook import CheckpointReportHook
from .class_transfer_hook import ClassTransferHook
from .dataset_check_hook import DatasetCheckHook
from .denoising_visualization_hook import DenoisingVisualizationHook

__all__ = [
    'AtomicCheckpointHook', 'CheckpointReportHook', 'ClassTransferHook', 'DatasetCheckHook',
    'DenoisingVisualizationHook'
]
