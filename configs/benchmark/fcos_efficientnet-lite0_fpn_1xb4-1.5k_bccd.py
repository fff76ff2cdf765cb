# FCOS of fcos_efficientnet-lite0_fpn_1xb4_bccd, as long and with the augmentation of
# diffusiondet_efficientnet-lite0_fpn_1xb4-1.5k_bccd.
_base_ = [
    '../_base_/models/efficientnet-lite0_fpn.py', '../_base_/models/fcos_light.py',
    '../_base_/datasets/bccd_detection.py', '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_1.5k.py'
]

model = dict(**_base_.trunk, **_base_.detector)
