# Faster R-CNN on drawn shapes, from scratch, with the trunk of the demo.
_base_ = [
    '../_base_/models/r18_fpn_small.py', '../_base_/models/faster-rcnn_light.py',
    '../_base_/datasets/shapes_detection.py', '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_4k_shapes.py'
]

model = dict(**_base_.trunk, **_base_.detector)
model['neck'] = dict(model['neck'], num_outs=5)
# Anchors of half the size: the images are 128 pixels wide.
anchor_generator = dict(model['rpn_head']['anchor_generator'], scales=[4])
model['rpn_head'] = dict(
    model['rpn_head'], in_channels=_base_.channels, feat_channels=_base_.channels, anchor_generator=anchor_generator)
roi_head = model['roi_head']
model['roi_head'] = dict(
    roi_head,
    bbox_roi_extractor=dict(roi_head['bbox_roi_extractor'], out_channels=_base_.channels),
    bbox_head=dict(roi_head['bbox_head'], num_classes=6, in_channels=_base_.channels))
