_base_ = [
    '../_base_/models/diffusiondet_swin-b_fpn.py', '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/schedule_450k.py', '../_base_/default_runtime.py'
]
