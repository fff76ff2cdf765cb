# CrowdHuman: full bodies, also where they are hidden, but clipped to the image: by the resize in training, by
# CrowdHumanMetric in evaluation. Resized as COCO is.
_base_ = ['./coco_detection.py']

dataset_type = 'CrowdHumanDataset'
data_root = 'data/crowdhuman/'
backend_args = None

train_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotation_train.odgt',
        data_prefix=dict(img='Images/')))
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotation_val.odgt',
        data_prefix=dict(img='Images/')))
test_dataloader = val_dataloader

val_evaluator = dict(
    _delete_=True,
    type='CrowdHumanMetric',
    ann_file=data_root + 'annotation_val.odgt',
    metric=['AP', 'MR', 'JI'],
    backend_args=backend_args)
test_evaluator = val_evaluator
