# Deformable DETR on drawn shapes, from scratch, with the trunk of the demo.
_base_ = [
    '../_base_/models/r18_fpn_small.py', '../_base_/models/deformable-detr_light.py',
    '../_base_/datasets/shapes_detection.py', '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_4k_shapes.py'
]

model = dict(**_base_.trunk, **_base_.detector)
width = _base_.channels
embedding = dict(embed_dims=width)
layer = dict(
    _base_.transformer_layer,
    self_attn_cfg=dict(_base_.transformer_layer.self_attn_cfg, **embedding),
    ffn_cfg=dict(_base_.transformer_layer.ffn_cfg, **embedding, feedforward_channels=4 * width))
decoder_layer = dict(
    layer,
    self_attn_cfg=dict(model['decoder']['layer_cfg']['self_attn_cfg'], **embedding),
    cross_attn_cfg=dict(model['decoder']['layer_cfg']['cross_attn_cfg'], **embedding))
model['encoder'] = dict(model['encoder'], layer_cfg=layer)
model['decoder'] = dict(model['decoder'], layer_cfg=decoder_layer)
model['positional_encoding'] = dict(model['positional_encoding'], num_feats=width // 2)
model['bbox_head'] = dict(model['bbox_head'], num_classes=6, **embedding)
