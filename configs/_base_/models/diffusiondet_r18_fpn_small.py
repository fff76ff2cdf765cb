# A DiffusionDet small enough to train from scratch on two CPU cores: ResNet-18 of half width, 3 stages, 100 boxes.
# What differs from the paper's model is there because there are no weights to start from (docs/custom_dataset.md).
_base_ = ['./diffusiondet_r50_fpn.py']

channels = 96
model = dict(
    backbone=dict(
        depth=18,
        base_channels=32,
        stem_channels=32,
        frozen_stages=-1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        init_cfg=None),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=channels),
    bbox_head=dict(
        feat_channels=channels,
        num_proposals=100,
        num_stages=3,
        stage=dict(
            feedforward_channels=4 * channels,
            dynamic_dim=32,
            # The first boxes pass unchanged, instead of being moved at random until the stages have learnt.
            init_cfg=dict(type='Constant', val=0, bias=0, override=dict(name='fc_reg'))),
        roi_extractor=dict(out_channels=channels)),
    # Teaches the backbone at every pixel; dropped at test time.
    auxiliary_head=dict(
        type='FCOSHead',
        in_channels=channels,
        feat_channels=channels,
        stacked_convs=1,
        strides=[4, 8, 16, 32],
        regress_ranges=((-1, 24), (24, 48), (48, 96), (96, 1e8)),
        norm_on_bbox=True,
        centerness_on_reg=True,
        center_sampling=True,
        norm_cfg=dict(type='GN', num_groups=8, requires_grad=True),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
        loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0)))
