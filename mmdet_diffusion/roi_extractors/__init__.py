"""RoI features of a whole pyramid."""

from .box_features import BoxFeatures, GatheredFeatures
from .pyramid_roi_extractor import PyramidRoIExtractor, StockRoIExtractor, build_roi_extractor

__all__ = ['BoxFeatures', 'GatheredFeatures', 'PyramidRoIExtractor', 'StockRoIExtractor', 'build_roi_extractor']
