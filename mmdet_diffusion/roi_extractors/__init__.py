"""RoI features of a whole pyramid."""

from .pyramid_roi_extractor import BoxFeatures, PyramidRoIExtractor, StockRoIExtractor, build_roi_extractor

__all__ = ['BoxFeatures', 'PyramidRoIExtractor', 'StockRoIExtractor', 'build_roi_extractor']
