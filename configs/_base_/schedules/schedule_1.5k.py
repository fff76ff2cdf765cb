# As schedule_short.py, with 1500 iterations where the environment variable MAX_ITERS says no other number.
_base_ = ['./schedule_short.py']

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
