custom_imports = dict(imports=['mmdet_diffusion'], allow_failed_imports=False)
default_scope = 'mmdet'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    # Schedules count iterations: by epoch all validations would stand at step 0 in TensorBoard, MLflow and wandb.
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='AtomicCheckpointHook', by_epoch=False, interval=10000, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'),
    # Here and not in custom_hooks: a config that sets custom_hooks would lose it without a word.
    dataset_check=dict(type='DatasetCheckHook'))

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
# Each process draws its own noise; without this all ranks draw the same.
randomness = dict(seed=None, diff_rank_seed=True)

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=False)

log_level = 'INFO'
load_from = None
resume = False

# Merges views with nms and max_per_img of model.test_cfg; tta_cfg=dict(max_per_img=...) here says otherwise.
tta_model = dict(type='DiffusionDetTTAModel')
