# LVIS v1: 1203 classes on the images of COCO 2017, decoded, cropped and resized as those. Images of rare classes are
# repeated. ClassBalancedDataset rounds an image's repeat factor up; the published training drew, so that the mean is
# the factor itself.
_base_ = ['./coco_detection.py']

dataset_type = 'LVISV1Dataset'
data_root = 'data/lvis_v1/'
backend_args = None
train_ann_file = 'annotations/lvis_v1_train.json'
val_ann_file = 'annotations/lvis_v1_val.json'

# For model.bbox_head.criterion. LVIS annotates an image for some classes only, so a stage learns from few at a time.
federated_loss = dict(
    type='FederatedLoss',
    loss=dict(type='FocalLoss', use_sigmoid=True, alpha=0.25, gamma=2.0, loss_weight=2.0),
    image_counts=data_root + train_ann_file,
    num_sampled_classes=50,
    power=0.5)

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ClassBalancedDataset',
        oversample_thr=1e-3,
        dataset=dict(
            type=dataset_type,
            data_root=data_root,
            ann_file=train_ann_file,
            data_prefix=dict(img=''),  # the annotations name the folder
            filter_cfg=dict(filter_empty_gt=False, min_size=0),
            pipeline=_base_.train_pipeline,
            backend_args=backend_args)))
val_dataloader = dict(
    dataset=dict(type=dataset_type, data_root=data_root, ann_file=val_ann_file, data_prefix=dict(img='')))
test_dataloader = val_dataloader

val_evaluator = dict(
    _delete_=True,
    type='LVISMetric',
    ann_file=data_root + val_ann_file,
    metric='bbox',
    backend_args=backend_args)
test_evaluator = val_evaluator
