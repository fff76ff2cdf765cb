# Sparse R-CNN (Sun et al. 2021, arXiv:2011.12450) as MMDetection has it: learnt boxes where DiffusionDet has random
# ones; without a trunk. Classes and channels are those for BCCD.
num_stages, num_proposals = 3, 100
relu = dict(type='ReLU', inplace=True)
stage = dict(
    type='DIIHead',
    num_classes=3,
    num_ffn_fcs=2,
    num_heads=8,
    num_cls_fcs=1,
    num_reg_fcs=3,
    feedforward_channels=512,
    in_channels=128,
    dropout=0.0,
    ffn_act_cfg=relu,
    dynamic_conv_cfg=dict(
        type='DynamicConv',
        in_channels=128,
        feat_channels=32,
        out_channels=128,
        input_feat_shape=7,
        act_cfg=relu,
        norm_cfg=dict(type='LN')),
    loss_bbox=dict(type='L1Loss', loss_weight=5.0),
    loss_iou=dict(type='GIoULoss', loss_weight=2.0),
    loss_cls=dict(type='FocalLoss', use_sigmoid=True, alpha=0.25, gamma=2.0, loss_weight=2.0),
    bbox_coder=dict(
        type='DeltaXYWHBBoxCoder', clip_border=False, target_means=[0.0] * 4, target_stds=[0.5, 0.5, 1.0, 1.0]))
matching = dict(
    assigner=dict(
        type='HungarianAssigner',
        match_costs=[
            dict(type='FocalLossCost', weight=2.0),
            dict(type='BBoxL1Cost', weight=5.0, box_format='xyxy'),
            dict(type='IoUCost', iou_mode='giou', weight=2.0)
        ]),
    sampler=dict(type='PseudoSampler'),
    pos_weight=1)
detector = dict(
    type='SparseRCNN',
    rpn_head=dict(type='EmbeddingRPNHead', num_proposals=num_proposals, proposal_feature_channel=128),
    roi_head=dict(
        type='SparseRoIHead',
        num_stages=num_stages,
        stage_loss_weights=[1] * num_stages,
        proposal_feature_channel=128,
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=2),
            out_channels=128,
            featmap_strides=[4, 8, 16, 32]),
        bbox_head=[stage] * num_stages),
    train_cfg=dict(rpn=None, rcnn=[matching] * num_stages),
    test_cfg=dict(rpn=None, rcnn=dict(max_per_img=num_proposals)))
