# The demo's config: learns drawn shapes from scratch in some minutes on two CPU cores.
_base_ = [
    '../_base_/models/diffusiondet_r18_fpn_small.py', '../_base_/datasets/shapes_detection.py',
    '../_base_/default_runtime.py'
]
model = dict(bbox_head=dict(num_classes=6))

max_iters = 2000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=200, end=max_iters, eta_min=0),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=1e-2),
    clip_grad=dict(max_norm=1.0, norm_type=2))
auto_scale_lr = dict(enable=False, base_batch_size=8)
default_hooks = dict(checkpoint=dict(interval=500, max_keep_ckpts=1))
