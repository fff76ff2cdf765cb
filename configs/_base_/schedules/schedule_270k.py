# 270k iterations at batch 16 (8 processes x 2 images), for LVIS.
_base_ = ['./schedule_450k.py']

max_iters = 270000
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=max_iters, milestones=[210000, 250000], gamma=0.1)
]
