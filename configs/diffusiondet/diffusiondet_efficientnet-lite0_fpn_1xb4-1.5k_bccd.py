# Three times as long, with pictures of three sizes, flipped in all directions, in changed colours: without that more
# than 500 iterations gain nothing on two hundred pictures, and with it they do (docs/custom_dataset.md).
_base_ = ['./diffusiondet_efficientnet-lite0_fpn_1xb4-0.5k_bccd.py']

train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))

max_iters = int('{{$MAX_ITERS:1500}}')
warm_up = min(50, max_iters // 10)
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warm_up)] * (warm_up > 1) + [
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=warm_up,
        end=max_iters,
        T_max=max_iters - warm_up,
        eta_min=0)
]
