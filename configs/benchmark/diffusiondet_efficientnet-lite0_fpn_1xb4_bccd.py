# DiffusionDet (arXiv:2211.09788) with the paper's settings in small, on the light trunk: 3 stages of 100 boxes.
_base_ = [
    '../_base_/models/efficientnet-lite0_fpn.py', '../_base_/datasets/bccd_plain_detection.py',
    '../_base_/default_runtime.py', '../_base_/schedules/schedule_short.py'
]

model = dict(
    type='DiffusionDet',
    **_base_.trunk,
    bbox_head=dict(
        type='DynamicDiffusionHead',
        num_classes=3,
        feat_channels=128,
        num_proposals=100,
        num_stages=3,
        prior_prob=0.01,
        box_sampler=dict(
            type='DiffusionBoxSampler', num_train_timesteps=1000, signal_scale=2.0, padding='gaussian'),
        stage=dict(
            type='DynamicDiffusionStage',
            num_attn_heads=8,
            feedforward_channels=512,
            dynamic_dim=32,
            num_cls_fcs=1,
            num_reg_fcs=3),
        roi_extractor=dict(
            type='PyramidRoIExtractor',
            featmap_strides=[4, 8, 16, 32],
            out_channels=128,
            output_size=7,
            sampling_ratio=2),
        criterion=dict(
            type='DiffusionDetCriterion',
            assigner=dict(
                type='DynamicKAssigner',
                cls_weight=2.0,
                l1_weight=5.0,
                giou_weight=2.0,
                center_radius=2.5,
                num_candidates=5),
            loss_cls=dict(type='FocalLoss', use_sigmoid=True, alpha=0.25, gamma=2.0, loss_weight=2.0),
            loss_bbox=dict(type='L1Loss', loss_weight=5.0),
            loss_iou=dict(type='GIoULoss', loss_weight=2.0))),
    test_cfg=dict(
        sampling_timesteps=1, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=300))
