# The demo's config: learns drawn shapes from scratch in some minutes on two CPU cores.
_base_ = [
    '../_base_/models/diffusiondet_r18_fpn_small.py', '../_base_/datasets/shapes_detection.py',
    '../_base_/default_runtime.py', '../_base_/schedules/schedule_4k_shapes.py'
]

channels = 64
model = dict(
    channels_last=True,
    neck=dict(out_channels=channels),
    bbox_head=dict(
        num_classes=6,
        feat_channels=channels,
        # At the price of 3 stages of 100 boxes, 5 of 64 reach a higher AP.
        num_proposals=64,
        num_stages=5,
        stage=dict(feedforward_channels=4 * channels, dynamic_dim=16),
        roi_extractor=dict(out_channels=channels),
        # Noise has the sizes of the objects: `mmdet-diffusion sizes data/shapes/annotations/train.json`.
        box_sampler=dict(
            signal_scale=None,
            padding='start',
            # Boxes near the objects in the first half of the training: it learns sooner to correct such boxes.
            jitter=dict(type='ObjectJitter'),
            coder=dict(type='SizeBBoxCoder', log_scale=(-1.498, 0.631), log_aspect=(-0.033, 0.162))),
        criterion=dict(
            # More queries an object than in the paper: without weights to start from, each counts.
            assigner=dict(num_candidates=12, min_queries=3),
            # Scores rank by overlap, so that suppression keeps the tightest box.
            class_targets='iou',
            loss_cls=dict(_delete_=True, type='VarifocalLoss', loss_weight=2.0))),
    auxiliary_head=dict(in_channels=channels, feat_channels=channels),
    test_cfg=dict(num_proposals=500, start_noise='even'))  # more than in training: small objects need them

default_hooks = dict(checkpoint=dict(interval=2000, max_keep_ckpts=1))
