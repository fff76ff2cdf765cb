# A small set of one's own, from scratch: blood cells (docs/custom_dataset.md).
_base_ = [
    '../_base_/models/diffusiondet_r18_fpn_small.py', '../_base_/datasets/bccd_detection.py',
    '../_base_/default_runtime.py', '../_base_/schedules/schedule_from_scratch.py'
]

# Cells are 20 to 120 pixels large here: the finest level is left out, which costs most and is not needed.
strides = [8, 16, 32]
model = dict(
    backbone=dict(out_indices=(1, 2, 3)),
    neck=dict(in_channels=[64, 128, 256], num_outs=3),
    bbox_head=dict(num_classes=3, roi_extractor=dict(featmap_strides=strides)),
    auxiliary_head=dict(strides=strides, regress_ranges=((-1, 48), (48, 96), (96, 1e8))))

max_iters = 5000
train_cfg = dict(max_iters=max_iters, val_interval=1000)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=200, end=max_iters, T_max=max_iters - 200, eta_min=0),
]
default_hooks = dict(checkpoint=dict(interval=1000, max_keep_ckpts=1))
