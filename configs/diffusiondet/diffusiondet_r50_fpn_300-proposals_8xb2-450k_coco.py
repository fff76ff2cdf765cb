_base_ = ['./diffusiondet_r50_fpn_8xb2-450k_coco.py']

model = dict(bbox_head=dict(num_proposals=300))
