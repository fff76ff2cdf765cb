# A data set of one's own in COCO format, to be edited: folder, files, classes (docs/custom_dataset.md). Resized as COCO
# is.
_base_ = ['./coco_detection.py']

data_root = 'data/custom/'
train_ann_file = 'annotations/train.json'
val_ann_file = 'annotations/val.json'
metainfo = dict(classes=('first', 'second'))  # names and order of the annotation files

train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        data_root=data_root, ann_file=train_ann_file, data_prefix=dict(img='images/'), metainfo=metainfo))
val_dataloader = dict(
    dataset=dict(data_root=data_root, ann_file=val_ann_file, data_prefix=dict(img='images/'), metainfo=metainfo))
test_dataloader = val_dataloader

val_evaluator = dict(ann_file=data_root + val_ann_file)
test_evaluator = val_evaluator
