# From a COCO checkpoint to classes of one's own, on one GPU: docs/custom_dataset.md. Not a recipe of the paper, and not
# tuned.
_base_ = [
    '../_base_/models/diffusiondet_r50_fpn.py', '../_base_/datasets/custom_detection.py',
    '../_base_/schedules/schedule_450k.py', '../_base_/default_runtime.py'
]

load_from = 'checkpoints/diffusiondet_r50_coco.pth'  # from tools/model_converters/diffusiondet_to_mmdet.py

model = dict(
    backbone=dict(init_cfg=None),  # load_from has the backbone: nothing to download
    bbox_head=dict(num_classes=len(_base_.metainfo.classes)))

max_iters = 5000
train_cfg = dict(max_iters=max_iters, val_interval=1000)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=max_iters, milestones=[3500, 4500], gamma=0.1),
]
# The learning rate of the published training; the class layers are new and learn faster.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(fc_cls=dict(lr_mult=10))))
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(
    checkpoint=dict(interval=1000, max_keep_ckpts=1, save_best='coco/bbox_mAP'),  # the last one, and the best
    class_transfer=dict(type='ClassTransferHook'),  # classes that COCO has too start from its class layers
    checkpoint_report=dict(type='CheckpointReportHook'))
