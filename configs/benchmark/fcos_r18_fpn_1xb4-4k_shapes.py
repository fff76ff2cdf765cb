# FCOS with one convolution a branch on drawn shapes, from scratch, with the trunk of the demo.
_base_ = [
    '../_base_/models/r18_fpn_small.py', '../_base_/models/fcos_light.py',
    '../_base_/datasets/shapes_detection.py', '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_4k_shapes.py'
]

model = dict(**_base_.trunk, **_base_.detector)
model['bbox_head'] = dict(model['bbox_head'], num_classes=6, in_channels=_base_.channels, feat_channels=_base_.channels)
