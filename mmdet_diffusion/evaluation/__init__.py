"""Comparing detectors and settings: detections kept by content, average precision for any weights of the images,
intervals. Not imported with the package: the tools that need it do so."""
