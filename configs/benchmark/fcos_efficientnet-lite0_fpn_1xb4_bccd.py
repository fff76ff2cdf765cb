# FCOS (Tian et al. 2019, arXiv:1904.01355) with one convolution a branch, on the light trunk: the auxiliary head of
# the DiffusionDet of this folder as a detector of its own.
_base_ = [
    '../_base_/models/efficientnet-lite0_fpn.py', '../_base_/models/fcos_light.py',
    '../_base_/datasets/bccd_plain_detection.py', '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_short.py'
]

model = dict(**_base_.trunk, **_base_.detector)
