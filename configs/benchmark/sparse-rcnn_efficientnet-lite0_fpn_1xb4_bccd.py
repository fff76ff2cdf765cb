# Sparse R-CNN (Sun et al. 2021, arXiv:2011.12450) as MMDetection has it, on the light trunk: learnt boxes where
# DiffusionDet has random ones, with as many stages and boxes of the same size as the DiffusionDet of this folder.
_base_ = [
    '../_base_/models/efficientnet-lite0_fpn.py', '../_base_/models/sparse-rcnn_light.py',
    '../_base_/datasets/bccd_plain_detection.py', '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_short.py'
]

model = dict(**_base_.trunk, **_base_.detector)
