"""Runs an exported DiffusionDet (arXiv 2211.09788): numpy, Pillow and an engine for ONNX; no torch, no mmdet.

    >>> detector = OnnxDetector('exported')
    >>> found = detector.detect('picture.jpg', steps=4, boxes=300, seed=0)
    >>> found.bboxes, found.scores, found.labels

What is exported is written by ``mmdet-diffusion export`` (docs/deployment.md).
"""

from .detector import OnnxDetector
from .errors import ExportError
from .post_processing import Detections
from .sampling import SamplingStep

__all__ = ['Detections', 'ExportError', 'OnnxDetector', 'SamplingStep']
