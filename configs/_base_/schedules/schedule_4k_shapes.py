# 4000 iterations from scratch on shapes, or as many as the environment variable MAX_ITERS says.
max_iters = int('{{$MAX_ITERS:4000}}')
warm_up = min(100, max_iters // 10)
train_cfg = dict(type='ResumableTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# In mmengine a warm-up of a single iteration never ends.
param_scheduler = [dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warm_up)] * (warm_up > 1) + [
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=warm_up,
        end=max_iters,
        T_max=max_iters - warm_up,
        eta_min=0)
]
# One rate for all, so that all parameters are one group, updated in one call.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='FusedAdamW', lr=7e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=10.0, norm_type=2))
auto_scale_lr = dict(enable=False, base_batch_size=4)
