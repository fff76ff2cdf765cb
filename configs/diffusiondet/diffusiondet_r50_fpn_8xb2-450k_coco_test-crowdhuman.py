# A COCO model tested on CrowdHuman, on which it was not trained (arXiv:2211.09788): visible boxes, AP50 of persons.
# The annotations come from tools/dataset_converters/crowdhuman_to_coco.py and name COCO's 80 classes, of which only
# persons have objects. COCO's evaluation leaves classes without objects out of its mean, so what it gives is that of
# persons alone. The dial: model.test_cfg.sampling_timesteps=1 to 4, model.test_cfg.num_proposals=300 to 2000.
_base_ = ['./diffusiondet_r50_fpn_8xb2-450k_coco.py']

# A step of N boxes gives its N best box-class pairs, of all 80 classes. What is left of them after NMS is all kept and
# all evaluated, up to 4 steps of 2000 boxes.
max_per_img = 8000
model = dict(test_cfg=dict(max_per_img=max_per_img))

data_root = 'data/crowdhuman/'
ann_file = 'annotations/val_visible.json'
test_dataloader = dict(dataset=dict(data_root=data_root, ann_file=ann_file, data_prefix=dict(img='Images/')))
test_evaluator = dict(
    ann_file=data_root + ann_file, metric_items=['mAP_50'], proposal_nums=(100, 300, max_per_img))
