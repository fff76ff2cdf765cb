# Deformable DETR on drawn shapes, from scratch, with the trunk of the demo.
_base_ = [
    '../_base_/models/r18_fpn_small.py', '../_base_/models/deformable-detr_light.py',
    '../_base_/datasets/shapes_detection.py', '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_4k_shapes.py'
]

model = dict(**_base_.trunk, **_base_.detector)
channels = 64
transformer_layer = dict(
    self_attn_cfg=dict(embed_dims=channels, batch_first=True),
    ffn_cfg=dict(embed_dims=channels, feedforward_channels=4 * channels, ffn_drop=0.0))
model['encoder'] = dict(model['encoder'], layer_cfg=transformer_layer)
model['decoder'] = dict(
    model['decoder'],
    layer_cfg=dict(
        transformer_layer,
        self_attn_cfg=dict(embed_dims=channels, num_heads=8, dropout=0.0, batch_first=True),
        cross_attn_cfg=dict(embed_dims=channels, batch_first=True)))
model['positional_encoding'] = dict(model['positional_encoding'], num_feats=channels // 2)
model['bbox_head'] = dict(model['bbox_head'], num_classes=6, embed_dims=channels)
