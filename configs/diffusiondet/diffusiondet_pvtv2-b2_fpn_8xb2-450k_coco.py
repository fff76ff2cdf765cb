# A backbone that the paper does not have: PVT v2-B2 (arXiv:2106.13797), with the paper's recipe. Not trained yet.
_base_ = 'diffusiondet_r50_fpn_8xb2-450k_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='PyramidVisionTransformerV2',
        embed_dims=64,
        num_layers=[3, 4, 6, 3],
        init_cfg=dict(checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth')),
    neck=dict(in_channels=[64, 128, 320, 512]))
