# Swin-B, window 7, trained on ImageNet-22k at 224 pixels. Nothing is frozen; each of the four outputs has its own norm.
_base_ = ['./diffusiondet_r50_fpn.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        pretrain_img_size=224,
        embed_dims=128,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        window_size=7,
        mlp_ratio=4,
        qkv_bias=True,
        drop_rate=0.0,
        attn_drop_rate=0.0,
        drop_path_rate=0.3,
        patch_norm=True,
        use_abs_pos_embed=False,
        out_indices=(0, 1, 2, 3),
        frozen_stages=-1,
        convert_weights=True,  # the file has the names of the Swin authors
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
            'swin_base_patch4_window7_224_22k.pth')),
    neck=dict(in_channels=[128, 256, 512, 1024]))
