# Sparse R-CNN on drawn shapes, from scratch, with the trunk of the demo and as many stages as it.
_base_ = [
    '../_base_/models/r18_fpn_small.py', '../_base_/models/sparse-rcnn_light.py',
    '../_base_/datasets/shapes_detection.py', '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_4k_shapes.py'
]

model = dict(**_base_.trunk, **_base_.detector)
num_stages = 5
stage = dict(
    _base_.stage,
    num_classes=6,
    in_channels=_base_.channels,
    feedforward_channels=4 * _base_.channels,
    dynamic_conv_cfg=dict(
        _base_.stage.dynamic_conv_cfg,
        in_channels=_base_.channels,
        feat_channels=16,
        out_channels=_base_.channels))
model['rpn_head'] = dict(model['rpn_head'], proposal_feature_channel=_base_.channels)
roi_head = model['roi_head']
model['roi_head'] = dict(
    roi_head,
    num_stages=num_stages,
    stage_loss_weights=[1] * num_stages,
    proposal_feature_channel=_base_.channels,
    bbox_roi_extractor=dict(roi_head['bbox_roi_extractor'], out_channels=_base_.channels),
    bbox_head=[stage] * num_stages)
model['train_cfg'] = dict(rpn=None, rcnn=[_base_.matching] * num_stages)
