# A DiffusionDet small enough to train from scratch on two CPU cores: ResNet-18, 3 stages, 100 boxes, 128 channels.
_base_ = ['./diffusiondet_r50_fpn.py']
model = dict(
    backbone=dict(
        depth=18,
        frozen_stages=-1,  # nothing is frozen: there are no weights to start from
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=128),
    bbox_head=dict(
        feat_channels=128,
        num_proposals=100,
        num_stages=3,
        stage=dict(feedforward_channels=512, dynamic_dim=32),
        roi_extractor=dict(out_channels=128)))
