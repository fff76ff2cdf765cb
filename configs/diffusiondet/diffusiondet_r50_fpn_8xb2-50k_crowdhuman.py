# Trained on CrowdHuman: about 53 epochs of its 15000 images, steps where the COCO schedule has them. Not a recipe of
# the paper.
_base_ = [
    '../_base_/models/diffusiondet_r50_fpn.py', '../_base_/datasets/crowdhuman_detection.py',
    '../_base_/schedules/schedule_450k.py', '../_base_/default_runtime.py'
]

# Up to some hundred people on an image, hence more detections than elsewhere.
model = dict(bbox_head=dict(num_classes=1), test_cfg=dict(max_per_img=500))

max_iters = 50000
train_cfg = dict(max_iters=max_iters, val_interval=5000)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=max_iters, milestones=[39000, 46500], gamma=0.1)
]
