# DiffusionDet with ResNet-50 and FPN (arXiv:2211.09788). Weights are given by URL: `torchvision://` needs torchvision.
model = dict(
    type='DiffusionDet',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32),
    backbone=dict(
        type='ResNet',
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=False),  # every batch norm is frozen with its affine parameters
        norm_eval=True,
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='https://download.pytorch.org/models/resnet50-0676ba61.pth')),
    neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=4),
    bbox_head=dict(
        type='DynamicDiffusionHead',
        num_classes=80,
        feat_channels=256,
        num_proposals=500,
        num_stages=6,
        prior_prob=0.01,
        box_sampler=dict(
            type='DiffusionBoxSampler', num_train_timesteps=1000, signal_scale=2.0, padding='gaussian'),
        stage=dict(
            type='DynamicDiffusionStage',
            num_attn_heads=8,
            feedforward_channels=2048,
            dynamic_dim=64,
            num_cls_fcs=1,
            num_reg_fcs=3),
        roi_extractor=dict(
            type='PyramidRoIExtractor',
            featmap_strides=[4, 8, 16, 32],
            out_channels=256,
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
        num_proposals=None,
        sampling_timesteps=1,
        eta=1.0,
        renewal_score_thr=0.5,
        ensemble='all',
        score_thr=0.0,
        nms=dict(type='nms', iou_threshold=0.5),
        max_per_img=300,
        min_bbox_size=0,
        seed=None))
