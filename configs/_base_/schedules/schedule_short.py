# A short training whose learning rate falls to zero at its end, whatever its length: 500 iterations, or as many as the
# environment variable MAX_ITERS says.
max_iters = int('{{$MAX_ITERS:500}}')
warm_up = min(50, max_iters // 10)
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
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=7e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=1.0, norm_type=2))
auto_scale_lr = dict(enable=False, base_batch_size=4)
