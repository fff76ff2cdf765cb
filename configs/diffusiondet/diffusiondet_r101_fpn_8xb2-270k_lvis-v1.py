_base_ = [
    '../_base_/models/diffusiondet_r101_fpn.py', '../_base_/datasets/lvis_v1_detection.py',
    '../_base_/schedules/schedule_270k.py', '../_base_/default_runtime.py'
]

model = dict(
    bbox_head=dict(num_classes=1203, criterion=dict(loss_cls=dict(_delete_=True, **_base_.federated_loss))))
