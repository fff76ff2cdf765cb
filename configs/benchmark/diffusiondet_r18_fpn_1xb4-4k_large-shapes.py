# The demo's config on pictures with one or two large objects: `mmdet-diffusion shapes data/large_shapes --large`.
_base_ = ['../diffusiondet/diffusiondet_r18_fpn_1xb4-4k_shapes.py']

data_root = 'data/large_shapes/'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = val_evaluator

# Noise has the sizes of these objects: `mmdet-diffusion sizes data/large_shapes/annotations/train.json`.
model = dict(bbox_head=dict(box_sampler=dict(coder=dict(log_scale=(-0.733, 0.24), log_aspect=(-0.025, 0.158)))))
