# Three times as long, with pictures of three sizes, flipped in all directions, in changed colours: without that more
# than 500 iterations gain nothing on two hundred pictures, and with it they do (docs/custom_dataset.md).
_base_ = ['./diffusiondet_efficientnet-lite0_fpn_1xb4-0.5k_bccd.py']

train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))

max_iters = 1500
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50, eta_min=0),
]
