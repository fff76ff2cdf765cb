# The demo's config: learns drawn shapes from scratch in some minutes on two CPU cores.
_base_ = [
    '../_base_/models/diffusiondet_r18_fpn_small.py', '../_base_/datasets/shapes_detection.py',
    '../_base_/default_runtime.py', '../_base_/schedules/schedule_from_scratch.py'
]
model = dict(bbox_head=dict(num_classes=6))
train_dataloader = dict(batch_size=4)
default_hooks = dict(checkpoint=dict(interval=1000, max_keep_ckpts=1))
