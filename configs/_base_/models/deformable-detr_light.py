# Deformable DETR (Zhu et al. 2021, arXiv:2010.04159) as MMDetection has it, with boxes refined by each layer, of 3
# encoder and 6 decoder layers; without a trunk. Classes and channels are those for BCCD. Not two-stage: MMDetection's
# takes 256 channels alone.
width = 128
transformer_layer = dict(
    self_attn_cfg=dict(embed_dims=width, batch_first=True),
    ffn_cfg=dict(embed_dims=width, feedforward_channels=4 * width, ffn_drop=0.0))
detector = dict(
    type='DeformableDETR',
    num_queries=100,
    num_feature_levels=4,
    with_box_refine=True,
    as_two_stage=False,
    encoder=dict(num_layers=3, layer_cfg=transformer_layer),
    decoder=dict(
        num_layers=6,
        return_intermediate=True,
        layer_cfg=dict(
            transformer_layer,
            self_attn_cfg=dict(embed_dims=width, num_heads=8, dropout=0.0, batch_first=True),
            cross_attn_cfg=dict(embed_dims=width, batch_first=True)),
        post_norm_cfg=None),
    positional_encoding=dict(num_feats=width // 2, normalize=True, offset=-0.5),
    bbox_head=dict(
        type='DeformableDETRHead',
        num_classes=3,
        embed_dims=width,
        sync_cls_avg_factor=True,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0)),
    train_cfg=dict(
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0)
            ])),
    test_cfg=dict(max_per_img=100))
