# Deformable DETR (Zhu et al. 2021, arXiv:2010.04159) as MMDetection has it, on the light trunk.
_base_ = [
    '../_base_/models/efficientnet-lite0_fpn.py', '../_base_/models/deformable-detr_light.py',
    '../_base_/datasets/bccd_plain_detection.py', '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_short.py'
]

model = dict(**_base_.trunk, **_base_.detector)
