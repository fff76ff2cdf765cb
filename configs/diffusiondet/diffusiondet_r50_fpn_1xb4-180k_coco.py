# For one GPU: a tenth of the images of the published training (6 epochs). Not a recipe of the paper.
_base_ = ['./diffusiondet_r50_fpn_8xb2-450k_coco.py']

max_iters = 180000
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=max_iters, milestones=[140000, 168000], gamma=0.1)
]
# The learning rate is that of batch 16, with which AdamW's small steps go well; `--auto-scale-lr` quarters it.
train_dataloader = dict(batch_size=4)
